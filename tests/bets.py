"""A system in which the influence decides which policy is right: two agents bet, and each moves the other's odds.

In every step an agent takes a sure reward of `SAFE`, or bets for 1 on its influence source. The source is 1 with
probability `CHANCE[parity of the step, what the other one does]`. So at even steps it is right to bet, the more so if
the other bets as well, and at odd steps it is not. Who believes in even odds never bets. Used by the tests as
`--env bets:Bets`.
"""

import numpy as np

from dials_mpi.simulators.interface import Domain, GlobalSimulator, Influence, LocalSimulator, Step

SAFE = 0.6
CHANCE = np.array([[0.7, 0.95], [0.3, 0.5]])
"""P(u = 1) by parity and the other agent's action."""
HORIZON = 10


class _Bets:
    """[K, B] agents, all at the same step; they see its parity."""

    def __init__(self, n_agents: int, copies: int):
        self._shape = (n_agents, copies)

    def seed(self, generators):
        self._generators = generators

    def reset(self):
        self._parity = 0
        return self.local_states()

    def local_states(self):
        return np.broadcast_to(np.eye(2, dtype=np.uint8)[self._parity], (*self._shape, 2)).copy()

    def _step(self, actions, sources) -> Step:
        rewards = np.where(actions == 1, sources, SAFE).astype(np.float32)
        self._parity = 1 - self._parity
        return Step(self.local_states(), rewards)


class BetsGlobalSimulator(_Bets, GlobalSimulator):
    def step(self, actions):
        chance = CHANCE[self._parity][np.asarray(actions)[::-1]]
        uniform = np.stack([generator.random(2) for generator in self._generators], axis=1)
        self._sources = (uniform < chance).astype(np.uint8)
        return self._step(actions, self._sources)

    def influence_sources(self):
        return self._sources[..., None]


class BetsLocalSimulator(_Bets, LocalSimulator):
    def step(self, actions, influence_sources):
        return self._step(actions, influence_sources[..., 0])


class Bets(Domain):
    name = "bets"
    n_actions = 2
    observation_size = 2
    horizon = HORIZON
    influence = Influence(sources=1, classes=2, local_state_size=2)

    def global_simulator(self, copies, controller=None):
        return BetsGlobalSimulator(2, copies)

    def local_simulator(self, agents, copies):
        return BetsLocalSimulator(len(agents), copies)


def expected_return(policies: np.ndarray) -> np.ndarray:
    """[2] undiscounted return of each agent in an episode; policies [2, 2, 2], π_i(a | parity)."""
    result = np.zeros(2)
    for t in range(HORIZON):
        mine = policies[:, t % 2]
        result += mine[:, 0] * SAFE + mine[:, 1] * (mine[::-1] @ CHANCE[t % 2])
    return result
