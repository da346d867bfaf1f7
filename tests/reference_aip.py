"""Training of one agent's influence predictor as the paper says it, in float64: what the product's is compared with.

It shares nothing with the product but the settings.
"""

import torch
from reference_ppo import Agent


def cross_entropy(agent: Agent, history, sources, classes: int, recurrent_size: int):
    """Mean over episodes, steps and sources of -log Î(u | l); history [E, T, D] float64, sources [E, T, U] int64."""
    n_sources = sources.shape[-1]
    memory = torch.zeros(len(history), recurrent_size, dtype=torch.float64) if recurrent_size else None
    losses = []
    for t in range(history.shape[1]):
        outputs, memory = agent.network(history[:, t], memory)
        if outputs.shape[1] == n_sources:  # the logit of class 1
            outputs = torch.stack([torch.zeros_like(outputs), outputs], dim=-1)
        probabilities = torch.softmax(outputs.reshape(len(history), n_sources, classes), dim=-1)
        losses.append(-probabilities.gather(-1, sources[:, t, :, None]).log())
    return torch.stack(losses).mean()


def train(agent: Agent, history, sources, classes: int, s, n_held_out: int, permutations):
    """Stops when the loss on the last episodes has not been better for some epochs.

    Returns the weights of the best epoch, that loss and the one before training, and after how many epochs it went on.

    Args:
        history, sources: [E, T, D] and [E, T, U].
        s: `PredictorSettings`.
        permutations: generator of the order of samples; whole episodes with a memory, single steps without one.
    """
    history, sources = torch.tensor(history, dtype=torch.float64), torch.tensor(sources, dtype=torch.int64)
    (train_x, test_x), (train_u, test_u) = ((x[:-n_held_out], x[-n_held_out:]) for x in (history, sources))

    def test_loss():
        return cross_entropy(agent, test_x, test_u, classes, s.recurrent_size).item()

    if not s.recurrent_size:
        train_x, train_u = train_x.flatten(0, 1).unsqueeze(1), train_u.flatten(0, 1).unsqueeze(1)
    count, length = train_x.shape[:2]
    before = best = test_loss()
    weights = {name: w.detach().clone() for name, w in agent.weights.items()}
    waited = 0
    went_on = 0
    for _ in range(s.epochs):
        for batch in torch.from_numpy(permutations.permutation(count)).split(max(1, s.minibatch_size // length)):
            agent.descend(
                cross_entropy(agent, train_x[batch], train_u[batch], classes, s.recurrent_size), s.learning_rate, None
            )
        loss, waited = test_loss(), waited + 1
        if loss < best:
            best, waited = loss, 0
            weights = {name: w.detach().clone() for name, w in agent.weights.items()}
        if waited == s.patience:
            break
        went_on += 1
    return weights, best, before, went_on
