"""One PPO update of one agent as the papers write it, in float64: what the product's is compared with.

Proximal policy optimisation (Schulman et al., 2017), generalised advantages (Schulman et al., 2016), a GRU (Cho et al.,
2014, as in torch.nn.GRU), Adam (Kingma and Ba, 2015). It shares nothing with the product but the settings. What the
settings cannot switch off is a function of its own, so that a test can take it away and see that it mattered.
"""

import numpy as np
import torch


class Agent:
    """Parameters by name (weights [in, out], biases [1, out]) and the moments of Adam."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.weights = {
            name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()
        }
        self._moments = [[torch.zeros_like(w), torch.zeros_like(w)] for w in self.weights.values()]
        self._steps = 0

    def network(self, x, h):
        """One time step: inputs [S, in], memory [S, H] or None → outputs [S, out], memory."""
        w = self.weights
        if h is not None:
            (x_r, x_z, x_n), (u_r, u_z, u_n) = (
                (x @ w["gru.input"] + w["gru.bias"]).chunk(3, -1),
                w["gru.hidden"].chunk(3, -1),
            )
            reset, keep = torch.sigmoid(x_r + h @ u_r), torch.sigmoid(x_z + h @ u_z)
            x = h = (1 - keep) * torch.tanh(x_n + reset * (h @ u_n + w["gru.bias_new"])) + keep * h
        layers = sum(name.startswith("layer") for name in w) // 2
        for i in range(layers):
            x = x @ w[f"layer{i}.weight"] + w[f"layer{i}.bias"]
            x = torch.tanh(x) if i < layers - 1 else x
        return x, h

    def wait(self) -> None:
        """A step that is not taken; Adam's clock goes on."""
        self._steps += 1

    def descend(self, loss, learning_rate, max_norm) -> float:
        """A step of Adam along the gradient of `loss`, shortened to `max_norm`; returns the norm before that."""
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        norm = sum(float((g**2).sum()) for g in gradients) ** 0.5
        self._steps += 1
        for w, g, moments in zip(self.weights.values(), gradients, self._moments, strict=True):
            if max_norm is not None and norm > max_norm:
                g = g * max_norm / norm
            moments[0] = 0.9 * moments[0] + 0.1 * g
            moments[1] = 0.999 * moments[1] + 0.001 * g**2
            first, second = moments[0] / (1 - 0.9**self._steps), moments[1] / (1 - 0.999**self._steps)
            w.data -= learning_rate * first / (second.sqrt() + 1e-5)
        return norm


def begins(step, horizon):
    """Whether an episode begins before that step of the simulator."""
    return step % horizon == 0


def wiped(memory, new_episode):
    return memory * ~new_episode[:, None]


def what_follows(advantage, episode_ends):
    return 0.0 if episode_ends else advantage


def still_on(over_before, new_episode):
    """Whether a step counts."""
    return ~over_before | new_episode


def for_ever(absorbing_reward, discount):
    """What an agent's future is worth whose episode was over early."""
    return sum(absorbing_reward * discount**k for k in range(5000))


def mean(x, counted):
    return x[counted].mean() if counted.any() else 0 * x.sum()


def normalised(advantages, counted):
    if not counted.any():
        return advantages
    known = advantages[counted]
    return (advantages - known.mean()) / (known.std(unbiased=False) + 1e-8)


def pessimistic(surrogate, clipped_surrogate):
    return torch.minimum(surrogate, clipped_surrogate)


def larger(error, clipped_error):
    return torch.maximum(error, clipped_error)


def categorical(logits, available):
    """Over the available actions alone; None: all."""
    probabilities = torch.softmax(logits, -1)
    if available is not None:
        probabilities = probabilities * available
    return torch.distributions.Categorical(probabilities / probabilities.sum(-1, keepdim=True), validate_args=False)


def gaussian(means, log_deviation):
    return torch.distributions.Independent(torch.distributions.Normal(means, log_deviation.exp()), 1)


def advantages_of(rewards, values, next_values, over, s, horizon, first_step, absorbing_reward):
    """[T, B]: the sum over later δ, weighted by (γλ)^k, up to the end of the agent's episode."""
    result = torch.zeros_like(rewards)
    for b in range(rewards.shape[1]):
        advantage = 0.0
        for t in reversed(range(rewards.shape[0])):
            terminates = over[t + 1, b]
            ends = t + 1 == len(rewards) or begins(first_step + t + 1, horizon) or terminates
            future = for_ever(s.reward_scale * absorbing_reward, s.discount) if terminates else next_values[t, b]
            delta = rewards[t, b] + s.discount * future - values[t, b]
            advantage = result[t, b] = delta + s.discount * s.gae_lambda * what_follows(advantage, ends)
    return result


def update(
    agent: Agent, rollout: dict, s, horizon: int, first_step: int, progress: float, permutations, absorbing_reward=0.0
) -> dict:
    """Learns from a rollout; returns the statistics by name.

    Args:
        rollout: one agent's arrays by the names of `Rollout`, [T, B, …].
        s: `PPOSettings`.
        permutations: generator of the order of sequences; sequence i is of copy i mod B, and of steps i // B · L on.
    """
    return update_together(agent, [rollout], s, horizon, first_step, progress, permutations, absorbing_reward)[0]


def update_together(
    agent: Agent, rollouts: list, s, horizon, first_step, progress, permutations, absorbing_reward=0.0
) -> list[dict]:
    """The same from the rollouts of several that share the parameters: along the gradient of their mean loss."""
    learning_rate = s.learning_rate * (1 - progress if s.anneal else 1)
    clip = s.clip * (1 - progress if s.anneal_clip else 1)
    entropy_coefficient = s.entropy_coefficient * (1 - progress if s.anneal_entropy else 1)
    prepared = []
    for rollout in rollouts:
        r = {
            name: torch.tensor(x, dtype=torch.int64 if x.dtype == np.int64 else torch.float64)
            for name, x in rollout.items()
        }
        rewards = s.reward_scale * r["rewards"]
        over = r.get("over", torch.zeros(rewards.shape[0] + 1, rewards.shape[1])) > 0
        r["counts"] = torch.stack(
            [still_on(before, begins(first_step + t, horizon)) for t, before in enumerate(over[:-1])]
        )
        given = rewards, r["values"], r["next_values"], over
        advantages = advantages_of(*given, s, horizon, first_step, absorbing_reward)
        prepared.append((r, advantages, advantages + r["values"]))
    length, copies = rewards.shape
    count = length // s.sequence_length * copies
    per_minibatch = min(count, s.minibatch_size // s.sequence_length)

    def loss_of(r, advantages, returns, batch):
        """Of a minibatch, with what it says of itself."""
        copy, chunk = batch % copies, batch // copies
        memory = r["states"][chunk, copy] if r["states"].shape[-1] else None
        steps = [chunk * s.sequence_length + i for i in range(s.sequence_length)]
        logits, values = [], []
        for t in steps:
            if memory is not None:
                memory = wiped(memory, begins(first_step + t, horizon))
            outputs, memory = agent.network(r["observations"][t, copy], memory)
            logits.append(outputs[:, :-1])
            values.append(outputs[:, -1])
        t = torch.stack(steps)
        if "log_deviation" in agent.weights:
            distribution = gaussian(torch.stack(logits), agent.weights["log_deviation"])
        else:
            distribution = categorical(torch.stack(logits), r["available"][t, copy] if "available" in r else None)
        values = torch.stack(values)
        log_ratio = distribution.log_prob(r["actions"][t, copy]) - r["log_probabilities"][t, copy]
        counted = r["counts"][t, copy]
        ratio, advantage = log_ratio.exp(), normalised(advantages[t, copy], counted)
        policy_loss = -mean(pessimistic(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), counted)
        old, target = r["values"][t, copy], returns[t, copy]
        error = (values - target) ** 2
        if s.clip_values:
            error = larger(error, (old + (values - old).clamp(-clip, clip) - target) ** 2)
        value_loss = 0.5 * mean(error, counted)
        entropy = mean(distribution.entropy(), counted)
        loss = policy_loss + s.value_coefficient * value_loss - entropy_coefficient * entropy
        kl, clipped = mean(ratio - 1 - log_ratio, counted), mean(((ratio - 1).abs() > clip).double(), counted)
        return loss, [x.item() for x in (policy_loss, value_loss, entropy, kl, clipped)], counted.sum().item()

    for _ in range(s.epochs):
        last_epoch = []
        for batch in torch.from_numpy(permutations.permutation(count)).split(per_minibatch):
            losses, facts, numbers = zip(*(loss_of(*each, batch) for each in prepared), strict=True)
            norm = agent.descend(sum(losses) / len(losses), learning_rate, s.max_gradient_norm)
            last_epoch.append([[n * x for x in (*each, norm, 1.0)] for each, n in zip(facts, numbers, strict=True)])
    names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "gradient_norm")
    return [
        {
            **dict(zip(names, np.array(sums[:-1]) / max(sums[-1], 1), strict=True)),
            "explained_variance": explained(advantages[r["counts"]], returns[r["counts"]]),
            "training_return": float(r["rewards"].mean() * horizon),
        }
        for sums, (r, advantages, returns) in zip(np.sum(last_epoch, axis=0), prepared, strict=True)
    ]


def explained(errors, returns) -> float:
    return float(1 - errors.var() / returns.var()) if len(returns) else 1.0
