"""The approximate influence predictors (AIPs) Î_θi(u_i | l_i) of a block of agents, and their training."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.config import PredictorSettings
from dials_mpi.influence.dataset import InfluenceDataset
from dials_mpi.learning.networks import StackedNetwork, as_features, mean_per_agent
from dials_mpi.learning.optimiser import Adam
from dials_mpi.simulators.interface import Influence
from dials_mpi.simulators.noise import NoiseBuffer, gumbel, logistic
from dials_mpi.stepwise import finish
from dials_mpi.streams import torch_seed

_EVALUATION_SAMPLES = 1000
"""Held-out samples per agent evaluated at once; not per block, or the block would decide how sums are rounded."""


class InfluencePredictor:
    """AIPs of A agents: U influence sources, each a categorical over C classes, or Bernoullis if C = 2.

    A recurrent predictor sees the history l_t through its memory; a feed-forward one sees the local state x_t alone.

    Args:
        agents: agent ids, whose streams initialise the parameters.
        influence: sizes, from the domain.
        settings: the `predictor:` section of the configuration.
        seed: the run's seed; None: all parameters are zero.
        device: where it computes.
    """

    def __init__(
        self,
        agents: Sequence[int],
        influence: Influence,
        settings: PredictorSettings,
        seed: int | None,
        device: torch.device | str = "cpu",
    ):
        self._sources, self._classes, local_state_size = influence
        self.settings = settings
        # A single binary source is a categorical over two classes: with one output column the matrix library takes
        # another path for one agent than for several, and rounds differently.
        self.bernoulli = self._classes == 2 and self._sources > 1
        outputs = self._sources * (1 if self.bernoulli else self._classes)
        self.network = StackedNetwork(
            local_state_size,
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
        cls, parameters: np.ndarray, influence: Influence, settings: PredictorSettings
    ) -> "InfluencePredictor":
        """Predictors as they stand in datasets and checkpoints.

        Args:
            parameters: [A, P] float32, a row per agent.

        Raises:
            ValueError: parameters of other networks.
        """
        predictor = cls(range(len(parameters)), influence, settings, seed=None)
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
        self, local_states: Tensor, state: Tensor | None, noise: NoiseBuffer
    ) -> tuple[np.ndarray, Tensor | None]:
        """û ~ Î_θ(· | l): local states [A, B, D] float32 and memory → sources [A, B, U] uint8 and next memory."""
        logits, state = self.network.step(local_states, state)
        draws = torch.from_numpy(noise.next()).to(logits.device)
        sources = draws < logits if self.bernoulli else (logits.view(draws.shape) + draws).argmax(dim=-1)
        return sources.to(torch.uint8).cpu().numpy(), state

    @torch.no_grad()
    def probabilities(self, history: np.ndarray) -> np.ndarray:
        """Î_θ(u_t | l_t) at every step of whole episodes: history [A, E, T, D] uint8 → [A, E, T, U, C] float32."""
        local_states = as_features(history, self.device).transpose(1, 2)
        logits = self.network.unroll(local_states, self.initial_state(local_states.shape[2])).transpose(1, 2)
        if self.bernoulli:
            ones = torch.sigmoid(logits)
            return torch.stack([1 - ones, ones], dim=-1).cpu().numpy()
        return torch.softmax(logits.unflatten(-1, (self._sources, self._classes)), dim=-1).cpu().numpy()

    def cross_entropy(self, local_states: Tensor, sources: Tensor) -> Tensor:
        """[A] mean cross-entropy per source and step, in nats (paper, section 3.2), with gradients.

        Args:
            local_states: [A, L, S, D] uint8, whole episodes for a recurrent predictor.
            sources: [A, L, S, U] uint8.
        """
        logits = self.network.unroll(local_states.float(), self.initial_state(local_states.shape[2]))
        if self.bernoulli:
            # Of operations whose vectorised and scalar forms agree to the bit, unlike torch's own loss: where a vector
            # ends and single values begin depends on how many agents are stacked.
            losses = logits.clamp(min=0) - logits * sources.float() + torch.log1p(torch.exp(-logits.abs()))
        else:
            # The class axis goes last: [A, L, S, U, C].
            log_probabilities = torch.log_softmax(logits.unflatten(-1, (self._sources, self._classes)), dim=-1)
            losses = -log_probabilities.gather(-1, sources.long().unsqueeze(-1)).squeeze(-1)
        return mean_per_agent(losses)


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
    local_states, sources = (
        torch.from_numpy(array).to(predictor.device) for array in (dataset.history, dataset.influence_sources)
    )
    episodes = local_states.shape[1]
    if episodes < 2:
        raise ValueError("an influence dataset needs two episodes at least: one to train on, one held out")
    split = min(episodes - 1, max(1, round(episodes * (1 - test_fraction))))

    def sequences(x: Tensor) -> Tensor:
        """[A, E, T, …] → [A, L, S, …]: whole episodes for a memory, single steps without one."""
        return x.transpose(1, 2) if network.recurrent_size else x.flatten(1, 2).unsqueeze(1)

    training = [sequences(x[:, :split]) for x in (local_states, sources)]
    test = [sequences(x[:, split:]) for x in (local_states, sources)]
    length, n_sequences = training[0].shape[1:3]
    per_minibatch = max(1, settings.minibatch_size // length)

    def test_loss() -> Tensor:
        chunk = max(1, _EVALUATION_SAMPLES // length)
        total = 0.0
        with torch.no_grad():
            for part in torch.arange(test[0].shape[2]).split(chunk):
                total = total + predictor.cross_entropy(test[0][:, :, part], test[1][:, :, part]) * len(part)
        return total / test[0].shape[2]

    optimiser = Adam(network)
    before = test_loss()
    best, best_parameters = before.clone(), network.parameters.clone()
    waited = torch.zeros(network.n_agents, dtype=torch.long, device=predictor.device)
    for _ in range(settings.epochs):
        for batch in torch.from_numpy(permutations.permutation(n_sequences)).split(per_minibatch):
            network.backward(predictor.cross_entropy(training[0][:, :, batch], training[1][:, :, batch]).sum())
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
