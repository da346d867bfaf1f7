"""The approximate influence predictors (AIPs) Î_θi(u_i | l_i) of a block of agents, and their training."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.influence.dataset import InfluenceDataset
from dials_mpi.influence.settings import PredictorSettings
from dials_mpi.learning.networks import StackedNetwork, mean_per_agent
from dials_mpi.learning.optimiser import Adam
from dials_mpi.learning.parameters import predictor_outputs
from dials_mpi.simulators.interface import Influence
from dials_mpi.simulators.noise import NoiseBuffer, gumbel, logistic
from dials_mpi.stepwise import finish
from dials_mpi.streams import torch_seed

NO_ACTION = -1
"""In the place of a_{t-1} at the first step of an episode."""
_EVALUATION_SAMPLES = 1000
"""Held-out samples per agent evaluated at once; not per block, or the block would decide how sums are rounded."""


class InfluencePredictor:
    """AIPs of A agents: U influence sources, each a categorical over C classes, or Bernoullis if C = 2.

    At step t they are given the local state x_t and, with `settings.sees_actions`, the action a_{t-1} as a one-hot, or
    zeros at the first step of an episode. A recurrent predictor sees what was given up to now through its memory, a
    feed-forward one what is given at step t alone. So only a recurrent one that sees actions has the paper's
    action-local-state history l_t = (x_0, a_0, …, a_{t-1}, x_t); one that does not has the local states of it.

    Args:
        agents: agent ids, whose streams initialise the parameters.
        influence: sizes, from the domain.
        settings: the `predictor:` section of the configuration.
        seed: the run's seed; None: all parameters are zero.
        device: where it computes.
        n_actions: of the domain; may be left out if the settings do not say that actions are seen.

    Raises:
        ValueError: the settings say that actions are seen, but it is not known how many there are.
    """

    def __init__(
        self,
        agents: Sequence[int],
        influence: Influence,
        settings: PredictorSettings,
        seed: int | None,
        device: torch.device | str = "cpu",
        n_actions: int = 0,
    ):
        self._sources, self._classes, local_state_size = influence
        if settings.sees_actions and n_actions < 1:
            raise ValueError("a predictor that sees actions needs their number")
        self._n_actions = n_actions if settings.sees_actions else 0
        self.settings = settings
        outputs = predictor_outputs(self._sources, self._classes)
        self.bernoulli = outputs < self._sources * self._classes
        self.network = StackedNetwork(
            local_state_size + self._n_actions,
            settings.recurrent_size,
            settings.hidden_sizes,
            outputs,
            settings.activation,
            [None if seed is None else torch_seed(seed, "predictor/initialise", agent) for agent in agents],
            # Nearly zero logits: an untrained predictor knows nothing and says so, cross-entropy ln C.
            head_gains=[(outputs, 0.01)],
            device=device,
        )

    @classmethod
    def from_parameters(
        cls, parameters: np.ndarray, influence: Influence, settings: PredictorSettings, n_actions: int = 0
    ) -> "InfluencePredictor":
        """Predictors as they stand in datasets and checkpoints.

        Args:
            parameters: [A, P] float32, a row per agent.
            n_actions: as of the class; datasets have it as an attribute of the round where it is needed.

        Raises:
            ValueError: parameters of other networks, or actions are seen and `n_actions` is missing.
        """
        predictor = cls(range(len(parameters)), influence, settings, seed=None, n_actions=n_actions)
        expected = tuple(predictor.network.parameters.shape)
        if parameters.shape != expected:
            raise ValueError(f"parameters of shape {parameters.shape}, but these settings make {expected}")
        predictor.network.parameters.copy_(torch.from_numpy(np.asarray(parameters, np.float32)))
        return predictor

    @property
    def device(self) -> torch.device:
        return self.network.parameters.device

    def initial_state(self, copies: int) -> Tensor | None:
        """The memory at the start of an episode."""
        return self.network.initial_state(copies)

    def noise(self, generators: Sequence[np.random.Generator], copies: int) -> NoiseBuffer:
        """The noise that `sample` takes, one stream per agent."""
        if self.bernoulli:
            return NoiseBuffer(generators, (copies, self._sources), logistic)
        return NoiseBuffer(generators, (copies, self._sources, self._classes), gumbel)

    def sample(
        self, local_states: np.ndarray, last_actions: np.ndarray, state: Tensor | None, noise: NoiseBuffer
    ) -> tuple[np.ndarray, Tensor | None]:
        """û ~ Î_θ(· | l) of one step in B copies.

        Args:
            local_states: [A, B, D] uint8, x_t.
            last_actions: [A, B] integers, a_{t-1}, or `NO_ACTION`.
            state: the memory, that of `initial_state` at the first step of an episode.

        Returns:
            Sources [A, B, U] uint8, and the next memory.
        """
        arrays = (torch.from_numpy(array).to(self.device) for array in (local_states, last_actions))
        logits, state = self.network.step(self._features(*arrays), state)
        draws = torch.from_numpy(noise.next()).to(logits.device)
        sources = draws < logits if self.bernoulli else (logits.view(draws.shape) + draws).argmax(dim=-1)
        return sources.to(torch.uint8).cpu().numpy(), state

    @torch.no_grad()
    def probabilities(self, history: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Î_θ(u_t | l_t) at every step of whole episodes, [A, E, T, U, C] float32.

        Args:
            history: [A, E, T, D] uint8, local states.
            actions: as of `InfluenceDataset`, a_t; looked at only if the predictor sees actions.
        """
        arrays = (torch.from_numpy(array).to(self.device) for array in (history, previous(actions)))
        features = self._features(*arrays).transpose(1, 2)
        logits = self.network.unroll(features, self.initial_state(features.shape[2])).transpose(1, 2)
        if self.bernoulli:
            ones = torch.sigmoid(logits)
            return torch.stack([1 - ones, ones], dim=-1).cpu().numpy()
        return torch.softmax(logits.unflatten(-1, (self._sources, self._classes)), dim=-1).cpu().numpy()

    def cross_entropy(self, local_states: Tensor, last_actions: Tensor, sources: Tensor) -> Tensor:
        """[A] mean cross-entropy per source and step, in nats (paper, section 3.2), with gradients.

        Args:
            local_states: [A, L, S, D] uint8, whole episodes for a recurrent predictor.
            last_actions: [A, L, S] int16, as of `previous`.
            sources: [A, L, S, U] uint8.
        """
        features = self._features(local_states, last_actions)
        logits = self.network.unroll(features, self.initial_state(features.shape[2]))
        if self.bernoulli:
            # Of operations whose vectorised and scalar forms agree to the bit, unlike torch's own loss: where a vector
            # ends and single values begin depends on how many agents are stacked.
            # Half of x + |x| is max(0, x), but with the right gradient at 0, where all logits of a new predictor are
            # while its local state is.
            magnitudes = logits.abs()
            losses = 0.5 * (logits + magnitudes) - logits * sources.float() + torch.log1p(torch.exp(-magnitudes))
        else:
            # The class axis goes last: [A, L, S, U, C].
            log_probabilities = torch.log_softmax(logits.unflatten(-1, (self._sources, self._classes)), dim=-1)
            losses = -log_probabilities.gather(-1, sources.long().unsqueeze(-1)).squeeze(-1)
        return mean_per_agent(losses)

    def _features(self, local_states: Tensor, last_actions: Tensor) -> Tensor:
        """What the network is given, everywhere: x_t [..., D] and a_{t-1} [...] → [..., input] float32."""
        features = local_states.float()
        if not self._n_actions:
            return features
        one_hot = last_actions.unsqueeze(-1) == torch.arange(self._n_actions, device=last_actions.device)
        return torch.cat([features, one_hot.float()], dim=-1)


def previous(actions: np.ndarray) -> np.ndarray:
    """a_{t-1} at every step of whole episodes, and `NO_ACTION` at the first: a_t [..., T] uint8 → [..., T] int16.

    Of continuous ones [..., T, C], which AIPs do not see, `NO_ACTION` throughout.
    """
    if actions.dtype.kind == "f":
        return np.full(actions.shape[:-1], NO_ACTION, np.int16)
    last = np.full(actions.shape, NO_ACTION, np.int16)
    last[..., 1:] = actions[..., :-1]
    return last


def train(
    predictor: InfluencePredictor, dataset: InfluenceDataset, test_fraction: float, permutations: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`train_by_epochs` from beginning to end; returns what that returns."""
    return finish(train_by_epochs(predictor, dataset, test_fraction, permutations))


def train_by_epochs(
    predictor: InfluencePredictor, dataset: InfluenceDataset, test_fraction: float, permutations: np.random.Generator
) -> Generator[None, None, tuple[np.ndarray, np.ndarray]]:
    """Trains the AIPs of a block on their datasets by cross-entropy (Algorithm 1, line 5); yields after each epoch.

    The last episodes are held out. Each agent keeps the parameters of the epoch with its best held-out loss, the ones
    it came with included, and stops after `patience` epochs without a better one. The optimiser starts afresh: old
    moments belong to a dataset of older policies.

    Args:
        permutations: the stream that shuffles minibatches, shared by all agents so that a block of one and a block of
            many see the same order.

    Returns:
        Held-out cross-entropy before and after, [A] float32 each, in nats per source and step. The second is the best
        over the epochs on the episodes that also choose the epoch, so it is slightly optimistic.

    Raises:
        ValueError: a dataset of one episode, which leaves nothing to hold out.
    """
    settings, network = predictor.settings, predictor.network
    samples = [
        torch.from_numpy(array).to(predictor.device)
        for array in (dataset.history, previous(dataset.actions), dataset.influence_sources)
    ]
    episodes = samples[0].shape[1]
    if episodes < 2:
        raise ValueError("an influence dataset needs two episodes at least: one to train on, one held out")
    split = min(episodes - 1, max(1, round(episodes * (1 - test_fraction))))

    def sequences(x: Tensor) -> Tensor:
        """[A, E, T, …] → [A, L, S, …]: whole episodes for a memory, single steps without one."""
        return x.transpose(1, 2) if network.recurrent_size else x.flatten(1, 2).unsqueeze(1)

    training = [sequences(x[:, :split]) for x in samples]
    test = [sequences(x[:, split:]) for x in samples]
    length, n_sequences = training[0].shape[1:3]
    per_minibatch = max(1, settings.minibatch_size // length)

    def test_loss() -> Tensor:
        chunk = max(1, _EVALUATION_SAMPLES // length)
        total = 0.0
        with torch.no_grad():
            for part in torch.arange(test[0].shape[2]).split(chunk):
                total = total + predictor.cross_entropy(*(x[:, :, part] for x in test)) * len(part)
        return total / test[0].shape[2]

    optimiser = Adam(network)
    before = test_loss()
    best, best_parameters = before.clone(), network.parameters.clone()
    waited = torch.zeros(network.n_agents, dtype=torch.long, device=predictor.device)
    for _ in range(settings.epochs):
        for batch in torch.from_numpy(permutations.permutation(n_sequences)).split(per_minibatch):
            network.backward(predictor.cross_entropy(*(x[:, :, batch] for x in training)).sum())
            optimiser.step(settings.learning_rate)
        loss = test_loss()
        # An agent that has stopped keeps its best, even while others of its block go on: the result of an agent does
        # not depend on who shares the block.
        better = (loss < best) & (waited < settings.patience)
        best = torch.where(better, loss, best)
        best_parameters[better] = network.parameters[better]
        waited = torch.where(better, 0, waited + 1)
        if bool((waited >= settings.patience).all()):
            break
        yield
    network.parameters.copy_(best_parameters)
    return before.cpu().numpy(), best.cpu().numpy()
