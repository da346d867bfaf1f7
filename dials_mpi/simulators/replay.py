"""How faithful is a local simulator? Episodes of the GS, lived through again in the LS under perfect influence."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dials_mpi.simulators.interface import Domain


class Replay(NamedTuple):
    """One episode of the GS in B copies and the same in the LS of every agent; arrays after each of T steps."""

    local_states: np.ndarray
    """[N, T, B, D] uint8 of the GS."""
    rewards: np.ndarray
    """[N, T, B] float32 of the GS."""
    replayed_states: np.ndarray
    """[N, T, B, D] uint8 of the LS."""
    replayed_rewards: np.ndarray
    """[N, T, B] float32 of the LS."""


def replay(domain: Domain, copies: int, act: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Replay:
    """Plays an episode on the GS, then its actions and recorded influence sources on the LS.

    What a local simulator draws at random besides, items in the warehouse for example, differs between the two.

    Args:
        copies: B.
        act: observations [N, B, O] → actions [N, B], called once per step.
        seed: of both simulators' streams, which are different ones.
    """
    everyone = range(domain.n_agents)
    actions, sources = [], []
    seen: tuple[list, ...] = ([], [], [], [])
    with domain.global_simulator(copies) as gs:
        gs.seed([np.random.default_rng((seed, 0, copy)) for copy in range(copies)])
        observations = gs.reset()
        for _ in range(domain.horizon):
            actions.append(act(observations))
            observations, rewards = gs.step(actions[-1])
            sources.append(gs.influence_sources().copy())
            seen[0].append(gs.local_states().copy())
            seen[1].append(rewards.copy())
    with domain.local_simulator(everyone, copies) as ls:
        ls.seed([np.random.default_rng((seed, 1, agent)) for agent in everyone])
        ls.reset()
        for a, u in zip(actions, sources, strict=True):
            _, rewards = ls.step(a, u)
            seen[2].append(ls.local_states().copy())
            seen[3].append(rewards.copy())
    return Replay(*(np.stack(rows, axis=1) for rows in seen))
