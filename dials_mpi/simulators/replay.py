"""How faithful is a local simulator? Episodes of the GS, lived through again in the LS under perfect influence."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dials_mpi.simulators.actions import available_actions
from dials_mpi.simulators.interface import Domain, GlobalSimulator, LocalSimulator, Step


class Episode(NamedTuple):
    """What N agents meet with in T steps of B copies; states and observations begin with those after `reset`."""

    local_states: np.ndarray
    """[N, T + 1, B, D] uint8."""
    observations: np.ndarray
    """[N, T + 1, B, O], any real dtype."""
    rewards: np.ndarray
    """[N, T, B] float32."""
    available: np.ndarray | None
    """[N, T + 1, B, actions] bool; None in domains that mask none."""
    terminated: np.ndarray | None
    """[N, T, B] bool; None in domains whose episodes all last until the horizon."""


class Replay(NamedTuple):
    """An episode of the GS and the same in the LS of every agent."""

    recorded: Episode
    replayed: Episode


def replay(
    domain: Domain,
    copies: int,
    act: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    seed: int = 0,
    steps: int | None = None,
) -> Replay:
    """Plays an episode on the GS, then its actions, recorded influence sources and draws on the LS.

    What the GS does not hand over of its draws differs between the two.

    Args:
        copies: B.
        act: as of `JointActor`, called once per step.
        seed: of both simulators' streams, which are different ones.
        steps: T, the first steps of the episode; None: all of it.

    Raises:
        NotImplementedError: the GS hands over draws, but the LS does not take them.
    """
    everyone = range(domain.n_agents)
    actions, sources = [], []
    with domain.global_simulator(copies) as gs:
        recorded = _Recorder(domain, gs)
        gs.seed([np.random.default_rng((seed, 0, copy)) for copy in range(copies)])
        recorded.start(gs.reset())
        draws = [_kept(gs.draws())]
        for _ in range(steps or domain.horizon):
            available = recorded.available[-1] if domain.masks_actions else None
            actions.append(act(recorded.observations[-1], available))
            recorded.add(gs.step(actions[-1]))
            sources.append(gs.influence_sources().copy())
            draws.append(_kept(gs.draws()))
    with domain.local_simulator(everyone, copies) as ls:
        replayed = _Recorder(domain, ls)
        ls.seed([np.random.default_rng((seed, 1, agent)) for agent in everyone])
        _hand_over(draws[0], ls)
        replayed.start(ls.reset())
        for a, u, drawn in zip(actions, sources, draws[1:], strict=True):
            _hand_over(drawn, ls)
            replayed.add(ls.step(a, u))
    return Replay(recorded.episode(), replayed.episode())


def disagreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N] Σ |x - y| / Σ max(|x|, |y|) over each agent's values, as of `Domain.replay_tolerance`; 0 where all are 0."""
    apart = np.zeros(len(first))
    for agent, (x, y) in enumerate(zip(first, second, strict=True)):
        x, y = x.astype(np.float64), y.astype(np.float64)
        apart[agent] = abs(x - y).sum() / max(np.maximum(abs(x), abs(y)).sum(), np.finfo(np.float64).tiny)
    return apart


class _Recorder:
    """Writes down an episode of a simulator, step by step."""

    def __init__(self, domain: Domain, simulator: GlobalSimulator | LocalSimulator):
        self._domain = domain
        self._simulator = simulator
        self.local_states: list[np.ndarray] = []
        self.observations: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.available: list[np.ndarray] = []
        self.terminated: list[np.ndarray] = []

    def start(self, observations: np.ndarray) -> None:
        self.observations.append(observations.copy())
        self.local_states.append(self._simulator.local_states().copy())
        available = available_actions(self._domain, self._simulator)
        if available is not None:
            self.available.append(available.copy())

    def add(self, step: Step) -> None:
        self.start(step.observations)
        self.rewards.append(step.rewards.copy())
        if self._domain.absorbing_reward is not None:
            over = np.zeros(step.rewards.shape, bool) if step.terminated is None else step.terminated
            self.terminated.append(over.copy())

    def episode(self) -> Episode:
        met_with = self.local_states, self.observations, self.rewards, self.available, self.terminated
        return Episode(*(np.stack(rows, axis=1) if rows else None for rows in met_with))


def _kept(draws: np.ndarray | None) -> np.ndarray | None:
    return None if draws is None else draws.copy()


def _hand_over(draws: np.ndarray | None, ls: LocalSimulator) -> None:
    if draws is not None:
        ls.take_draws(draws)
