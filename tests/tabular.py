"""A local-form fPOSG small enough to enumerate: two agents, each with one bit that the other influences.

Agent i's bit x_i turns to 1 with probability P[i, x_i, u_i, a_i]; its influence source u_i is the other's bit, which it
never sees. What it can know of u_i is in its action-local-state history l_i = (x_0, a_0, x_1, a_1, … x_t), and
`exact_influence` says how much: I(u_i | l_i) for every history, by summing over everything that may have happened.

`Tabular` has the last action in its local states, so that an AIP which sees nothing else has the whole history.
`Toggling` has not: a local state is x_t, and whether the other's bit was 1 shows in what one's own action did to it.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from dials_mpi.simulators.interface import Domain, GlobalSimulator, Influence, LocalSimulator, Step

HORIZON = 5
TURN = np.random.default_rng(8).choice([0.05, 0.3, 0.7, 0.95], size=(2, 2, 2, 2))
"""P[i, x, u, a], probability that agent i's bit is 1 after the step."""
TOGGLE = np.broadcast_to([[0.05, 0.95], [0.95, 0.05]], (2, 2, 2, 2))
"""The same where it becomes u xor a, 19 times of 20."""
REWARD = np.array([[0.0, 0.2], [1.0, 0.7]])
"""R[x, a]."""


class _Bits:
    """[K, B] bits and last actions; `agents` are the rows of the domain's `turn` that they follow."""

    def __init__(self, domain, agents, copies):
        self._domain = domain
        self._agents = np.asarray(agents)[:, None]
        self._shape = (len(agents), copies)

    def _begin(self, uniform):
        self._x = (uniform < 0.5).astype(np.int64)
        self._last = np.zeros(self._shape, np.int64)
        self._started = 0
        return self._observations()

    def _observations(self):
        return np.stack([self._x, 1 - self._x], axis=-1).astype(np.uint8)

    def local_states(self):
        return self._domain.local_states(self._x, self._last, np.full(self._shape, self._started))

    def _step(self, actions, sources, uniform) -> Step:
        rewards = REWARD[self._x, actions].astype(np.float32)
        self._x = (uniform < self._domain.turn[self._agents, self._x, sources, actions]).astype(np.int64)
        self._last, self._started = np.array(actions), 1
        return Step(self._observations(), rewards)


class TabularGlobalSimulator(_Bits, GlobalSimulator):
    def seed(self, generators):
        self._generators = generators

    def _uniform(self):
        self._draws = np.stack([generator.random(2) for generator in self._generators], axis=1)
        return self._draws

    def draws(self):
        return self._draws

    def reset(self):
        return self._begin(self._uniform())

    def step(self, actions):
        self._sources = self._x[::-1].copy()
        return self._step(actions, self._sources, self._uniform())

    def influence_sources(self):
        return self._sources[..., None].astype(np.uint8)


class TabularLocalSimulator(_Bits, LocalSimulator):
    _given = None

    def seed(self, generators):
        self._generators = generators

    def _uniform(self):
        given, self._given = self._given, None
        return np.stack([g.random(self._shape[1]) for g in self._generators]) if given is None else given

    def take_draws(self, draws):
        self._given = draws

    def reset(self):
        return self._begin(self._uniform())

    def step(self, actions, influence_sources):
        return self._step(actions, influence_sources[..., 0], self._uniform())


class Tabular(Domain):
    name = "tabular"
    n_actions = 2
    observation_size = 2
    horizon = HORIZON
    influence = Influence(sources=1, classes=2, local_state_size=3)
    turn = TURN

    def global_simulator(self, copies, controller=None):
        return TabularGlobalSimulator(self, range(2), copies)

    def local_simulator(self, agents, copies):
        return TabularLocalSimulator(self, agents, copies)

    def local_states(self, x, last, started):
        """x_t and, because a history has the actions as well, a_{t-1}, which a predictor sees one step later."""
        return np.stack([x, last, started], axis=-1).astype(np.uint8)


class Toggling(Tabular):
    influence = Influence(sources=1, classes=2, local_state_size=1)
    turn = TOGGLE

    def local_states(self, x, last, started):
        return x[..., None].astype(np.uint8)


def histories(domain: Tabular, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Local states [K, T, D] and actions [K, T] of all histories l_t of T = t + 1 steps.

    Row h continues row h >> 2 of those one shorter. A history's number in bits is x_0 a_0 x_1 a_1 … x_t; the last
    action, a_t, is no part of it and always 1.
    """
    count = 2 * 4**t
    bits = (np.arange(count)[:, None] >> np.arange(2 * t, -1, -1)) & 1
    x, a = bits[:, 0::2], bits[:, 1::2]
    last = np.concatenate([np.zeros((count, 1), np.int64), a], axis=1)
    started = np.broadcast_to((np.arange(t + 1) > 0).astype(np.int64), (count, t + 1))
    actions = np.concatenate([a, np.ones((count, 1), np.int64)], axis=1)
    return domain.local_states(x, last, started), actions.astype(np.uint8)


def exact_influence(policies: np.ndarray, agent: int, turn: np.ndarray = TURN) -> list[tuple[np.ndarray, np.ndarray]]:
    """P(l_t) [K] and I(u = 1 | l_t) [K] of one agent for t = 0 … H-1, histories as `histories` numbers them.

    Args:
        policies: [2, 2, 2], π_i(a | x).
        turn: P[i, x, u, a] of the bits.
    """
    mine, other = policies[agent], policies[1 - agent]
    weights = np.full((2, 2), 0.25)  # P(l_t, the other's bit)
    result = []
    for _ in range(HORIZON):
        result.append((weights.sum(axis=1), weights[:, 1] / weights.sum(axis=1)))
        x = np.arange(len(weights)) & 1
        following = np.zeros((len(weights), 2, 2, 2))  # history, a, x', the other's next bit
        for y in range(2):
            for a in range(2):
                mine_turns = turn[agent, x, y, a]
                for b in range(2):
                    other_turns = turn[1 - agent, y, x, b]
                    ways = weights[:, y] * mine[x, a] * other[y, b]
                    for next_x, p in enumerate((1 - mine_turns, mine_turns)):
                        for next_y, q in enumerate((1 - other_turns, other_turns)):
                            following[:, a, next_x, next_y] += ways * p * q
        weights = following.reshape(-1, 2)
    assert all(len(later[0]) == 4 * len(earlier[0]) for earlier, later in pairwise(result))
    return result


def given_local_states(exact: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """P(x_0 … x_t) and I(u = 1 | x_0 … x_t), from what `exact_influence` says of whole histories."""
    return _given_part(exact, lambda t: sum(4**k for k in range(t + 1)))


def given_last_step(exact: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same for a_{t-1} x_t alone, by who does not know of t more than whether it is the first step."""
    first, *later = _given_part(exact, lambda t: 0b11 if t else 0b1)
    ones = np.mean([p * influence for p, influence in later], axis=0)
    p = np.mean([p for p, _ in later], axis=0)
    return [first, *[(p, ones / p)] * len(later)]


def _given_part(
    exact: list[tuple[np.ndarray, np.ndarray]], part: Callable[[int], int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """By summing over the rest of the histories.

    Args:
        part: of t, which bits of a history's number are left.
    """
    result = []
    for t, (p, influence) in enumerate(exact):
        _, which = np.unique(np.arange(len(p)) & part(t), return_inverse=True)
        left = np.bincount(which, weights=p)
        result.append((left, np.bincount(which, weights=p * influence) / left))
    return result


def values(influence: list[np.ndarray], turn: np.ndarray, reward: np.ndarray, policy=None) -> list[np.ndarray]:
    """Q_t [M, K, 2] of M IALMs over all histories and actions, for t = 0 … H-1.

    Args:
        influence: I(u = 1 | l_t) [M, K] for every t.
        turn: P[x, u, a] of the bit.
        reward: R[x, a].
        policy: π(a = 1 | l_t) [M, K] for every t; None: the optimal one of each IALM.
    """
    result = []
    following = None
    for t in range(len(influence) - 1, -1, -1):
        x = np.arange(influence[t].shape[1]) & 1
        q = np.broadcast_to(reward[x], (len(influence[t]), len(x), 2)).copy()
        if following is not None:
            after = following.reshape(len(q), len(x), 2, 2)  # M, history, a, x'
            ones = influence[t][..., None] * turn[x, 1] + (1 - influence[t][..., None]) * turn[x, 0]
            q += ones * after[..., 1] + (1 - ones) * after[..., 0]
        result.insert(0, q)
        pi = q.argmax(axis=-1) if policy is None else policy[t]
        following = pi * q[..., 1] + (1 - pi) * q[..., 0]
    return result
