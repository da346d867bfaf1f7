"""The traffic LS: intersections that know of the rest of the city by their influence sources alone."""

from collections.abc import Sequence

import numpy as np

from dials_mpi.simulators.interface import LocalSimulator, Step
from dials_mpi.simulators.noise import NoiseBuffer
from dials_mpi.simulators.traffic.intersections import APPROACHES, Intersections

ENTRY_POSITION = 6.0
"""m from the lane's start."""
ENTRY_SPEED = 0.95
SLOW_ENTRY_SPEED = 0.3
"""Shares of the speed limit; the slow one on lanes with more than `CROWDED` vehicles."""
CROWDED = 8
SPEED_DEVIATION = 0.1
"""Of the share of the speed limit that drivers keep to: normal around 1, as SUMO's speedDev."""


class TrafficLocalSimulator(LocalSimulator):
    """A tile of one intersection, its incoming and its outgoing lanes, for each of A agents and B copies.

    A source of 1 lets a vehicle enter its lane 6 m from the start; one that finds no room is dropped. All intersections
    are alike, so only the number of agents matters.

    Args:
        intersections: of A · B tiles, agent by agent.
        n_agents: A.
    """

    def __init__(self, intersections: Intersections, n_agents: int):
        self.intersections = intersections
        network = intersections.network
        self._routes = [street[0] for street in network.streets()]
        self._lanes = network.lanes
        self._speed_limit = network.speed_limit
        self._size = (n_agents, network.copies // n_agents)

    def seed(self, generators: Sequence[np.random.Generator]) -> None:
        self._noise = NoiseBuffer(generators, (self._size[1], APPROACHES * self._lanes, 2), _normal)

    def reset(self):
        self.intersections.reset()
        return self._observations()

    def step(self, actions, influence_sources):
        self.intersections.act(actions.ravel())
        crowded = self.intersections.counts.ravel() > CROWDED
        entry_speeds = np.where(crowded, SLOW_ENTRY_SPEED, ENTRY_SPEED)
        speed_factors = self._speed_factors(entry_speeds)
        for lane in np.flatnonzero(influence_sources).tolist():
            approach, lane_of_approach = divmod(lane, self._lanes)
            self.intersections.sumo.enter(
                self._routes[approach],
                str(lane_of_approach),
                str(ENTRY_POSITION),
                entry_speeds[lane] * self._speed_limit,
                speed_factors[lane],
            )
        self.intersections.step(drop_pending=True)
        return Step(self._observations(), self.intersections.rewards.reshape(self._size).copy())

    def local_states(self):
        return self.intersections.local_states().reshape(*self._size, -1)

    def close(self):
        self.intersections.sumo.close()

    def _observations(self) -> np.ndarray:
        rows = np.concatenate([self.intersections.local_states(), self.intersections.lights()], axis=1)
        return rows.reshape(*self._size, -1)

    def _speed_factors(self, entry_speeds: np.ndarray) -> np.ndarray:
        """[A · B · lanes] share of the speed limit that each vehicle would keep to.

        As SUMO draws it: a driver who would not reach the entry speed is drawn anew, and once more too slow is given
        that speed. Nobody drives faster than the type's maximum speed, which is the limit.
        """
        first, second = 1 + SPEED_DEVIATION * self._noise.next().reshape(-1, 2).T.astype(np.float64)
        return np.minimum(np.where(first < entry_speeds, np.maximum(second, entry_speeds), first), 1.0)


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32)
