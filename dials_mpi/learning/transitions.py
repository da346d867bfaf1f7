"""Episodes of the joint policy as owners learn from them, agent by agent."""

from dataclasses import dataclass, fields

import numpy as np

from dials_mpi.learning.episodes import JointEpisodes
from dials_mpi.simulators.interface import Domain, GlobalSimulator, Step


@dataclass
class Transitions:
    """What A agents met with in E whole episodes of T steps."""

    observations: np.ndarray
    """[A, E, T + 1, O] float32, o_0 … o_T."""
    actions: np.ndarray
    """[A, E, T] uint8."""
    rewards: np.ndarray
    """[A, E, T] float32, unscaled."""
    terminated: np.ndarray
    """[A, E, T] bool, whether the agent's episode was over after step t, as of `Step`."""
    all_over: np.ndarray
    """[A, E, T] bool, whether all agents' were: the same in every row."""

    @classmethod
    def empty(cls, n_agents: int, episodes: int, domain: Domain) -> "Transitions":
        """Arrays to be filled in."""
        shape = (n_agents, episodes, domain.horizon)
        return cls(
            observations=np.empty((n_agents, episodes, domain.horizon + 1, domain.observation_size), np.float32),
            actions=np.empty(shape, np.uint8),
            rewards=np.empty(shape, np.float32),
            terminated=np.empty(shape, bool),
            all_over=np.empty(shape, bool),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def collect_transitions(episodes: JointEpisodes, batch: int, members: range) -> Transitions:
    """Plays one batch of episodes; what all N agents met with.

    Args:
        batch, members: as of `JointEpisodes.play`.
    """
    data = Transitions.empty(episodes.domain.n_agents, len(members), episodes.domain)
    episodes.play(batch, members, lambda simulator: _Watched(simulator, data))
    return data


class _Watched:
    """A GS that writes down an episode while it is stepped."""

    def __init__(self, simulator: GlobalSimulator, into: Transitions):
        self._simulator = simulator
        self._into = into
        self._elapsed = 0

    def reset(self) -> np.ndarray:
        observations = self._simulator.reset()
        self._into.observations[:, :, 0] = observations
        return observations

    def step(self, actions: np.ndarray) -> Step:
        t, into = self._elapsed, self._into
        into.actions[:, :, t] = actions
        result = self._simulator.step(actions)
        into.observations[:, :, t + 1] = result.observations
        into.rewards[:, :, t] = result.rewards
        over = result.terminated
        into.terminated[:, :, t] = False if over is None else over
        into.all_over[:, :, t] = False if over is None else over.all(axis=0)
        self._elapsed += 1
        return result
