"""Collecting the datasets D_i from the GS (Algorithm 1, line 3), in batches of episodes."""

import numpy as np

from dials_mpi.influence.dataset import InfluenceDataset
from dials_mpi.learning.episodes import JointEpisodes, Outcomes, batches_of
from dials_mpi.simulators.interface import GlobalSimulator, Step


def dataset_batches(steps: int, copies: int, horizon: int) -> list[range]:
    """Numbers of the episodes that make up `steps` joint steps, rounded up to whole ones, in batches of `copies`."""
    return batches_of(-(-steps // horizon), copies)


def collect(episodes: JointEpisodes, batch: int, members: range) -> tuple[InfluenceDataset, Outcomes]:
    """Plays one batch of episodes; what all N agents see of it, and what it came to.

    The episodes are those that an evaluation at the same training step plays, so the outcomes can stand for one.

    Args:
        batch, members: as of `JointEpisodes.play`.
    """
    domain = episodes.domain
    data = InfluenceDataset.empty(domain.n_agents, len(members), domain.horizon, domain.influence, domain.action_size)
    return data, episodes.play(batch, members, lambda simulator: _Watched(simulator, data))


class _Watched:
    """A GS that writes down an episode while it is stepped."""

    def __init__(self, simulator: GlobalSimulator, into: InfluenceDataset):
        self._simulator = simulator
        self._into = into
        self._elapsed = 0
        self.reset, self.available_actions = simulator.reset, simulator.available_actions

    def step(self, actions: np.ndarray) -> Step:
        t, into = self._elapsed, self._into
        into.history[:, :, t] = self._simulator.local_states()
        into.actions[:, :, t] = actions
        result = self._simulator.step(actions)
        into.influence_sources[:, :, t] = self._simulator.influence_sources()
        self._elapsed += 1
        return result
