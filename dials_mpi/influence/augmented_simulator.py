"""The influence-augmented local simulator (IALS) ⟨T̂ᵢ, R̂ᵢ, Ôᵢ, Î_θᵢ⟩ of a block of agents (paper, section 3.2)."""

from collections.abc import Sequence

import numpy as np

from dials_mpi.influence.predictor import NO_ACTION, InfluencePredictor
from dials_mpi.simulators.interface import LocalSimulator, Step


class InfluenceAugmentedSimulator:
    """LS + AIP: to the learner it looks like a global simulator of its A agents alone.

    Args:
        local_simulator: the regions of A agents in B copies.
        predictor: the AIPs of the same agents.
        copies: B.
    """

    def __init__(self, local_simulator: LocalSimulator, predictor: InfluencePredictor, copies: int):
        self._local_simulator = local_simulator
        self._predictor = predictor
        self._last_actions = np.empty((predictor.network.n_agents, copies), np.int64)
        self._copies = copies

    def seed(self, simulator: Sequence[np.random.Generator], influence: Sequence[np.random.Generator]) -> None:
        """One stream per agent for the LS, one for the sampled influence sources."""
        self._local_simulator.seed(simulator)
        self._noise = self._predictor.noise(influence, self._copies)

    def reset(self) -> np.ndarray:
        """A new episode in all copies, the predictor's memory wiped, actions forgotten; observations [A, B, O]."""
        self._state = self._predictor.initial_state(self._copies)
        self._last_actions.fill(NO_ACTION)
        return self._local_simulator.reset()

    def step(self, actions: np.ndarray) -> Step:
        """û ~ Î(· | l), x' ~ T̂(x, û, a), r = R̂, o' = Ô(x') for actions [A, B] (Algorithm 1, line 9)."""
        local_states = self._local_simulator.local_states()
        sources, self._state = self._predictor.sample(local_states, self._last_actions, self._state, self._noise)
        if self._predictor.settings.sees_actions:
            np.copyto(self._last_actions, actions)  # the caller may write the next ones into the same array
        return self._local_simulator.step(actions, sources)

    def available_actions(self) -> np.ndarray:
        """As of `Simulator`."""
        return self._local_simulator.available_actions()

    def close(self) -> None:
        self._local_simulator.close()
