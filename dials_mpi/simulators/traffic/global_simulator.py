"""The traffic GS: the whole grid, driven by `step`'s actions or by a hand-coded controller."""

import numpy as np

from dials_mpi.simulators.interface import GlobalSimulator, Step
from dials_mpi.simulators.noise import NoiseBuffer
from dials_mpi.simulators.traffic.handcoded import CONTROLLERS, FixedTime
from dials_mpi.simulators.traffic.intersections import Intersections


class TrafficGlobalSimulator(GlobalSimulator):
    """B copies of the grid in one SUMO network.

    Args:
        intersections: of B copies of the grid, copy by copy.
        inflow_probability: chance per second that a vehicle wants to enter at each street that comes in.
        controller: `fixed-time` for that plan instead of `step`'s actions; with `actuated` the network has its own.
    """

    def __init__(self, intersections: Intersections, inflow_probability: float, controller: str | None):
        self.intersections = intersections
        network = intersections.network
        self._entries = [street[0] for street in network.streets()]
        self._copies = network.copies
        self._n_agents = network.rows * network.columns
        self._inflow_probability = np.float32(inflow_probability)
        self._entry_speed = network.speed_limit
        if controller not in (None, *CONTROLLERS):
            raise ValueError(f"controller {controller!r} of traffic lights: choose one of {', '.join(CONTROLLERS)}")
        self._controller = controller
        self._fixed_time = FixedTime(len(network.intersections)) if controller == "fixed-time" else None

    def seed(self, generators):
        self._noise = NoiseBuffer(generators, (len(self._entries) // self._copies,))

    def reset(self):
        self.intersections.reset()
        if self._fixed_time:
            self._fixed_time.reset()
        return self._observations()

    def step(self, actions):
        if self._fixed_time:
            actions = self._fixed_time.act()
        before = self.intersections.phases.copy()
        if self._controller != "actuated":
            self._actions = actions.T.ravel()
            self.intersections.act(self._actions)
        for k in np.flatnonzero(self._noise.next() < self._inflow_probability).tolist():
            # At the speed limit: SUMO draws no slower driver for a vehicle that is to depart at this speed.
            self.intersections.sumo.enter(self._entries[k], "free", "base", self._entry_speed)
        self.intersections.step()
        if self._controller == "actuated":
            self._actions = (before != self.intersections.phases) & (before % 2 == 0)
        return Step(self._observations(), self._by_agent(self.intersections.rewards))

    def actions(self):
        return self._by_agent(self._actions).astype(np.int64)

    def local_states(self):
        return self._by_agent(self.intersections.local_states())

    def influence_sources(self):
        return self._by_agent(self.intersections.bits[:, :, -1])

    def close(self):
        self.intersections.sumo.close()

    def _observations(self) -> np.ndarray:
        return self._by_agent(np.concatenate([self.intersections.local_states(), self.intersections.lights()], axis=1))

    def _by_agent(self, rows: np.ndarray) -> np.ndarray:
        """[B · N, …] → [N, B, …], contiguous."""
        return np.ascontiguousarray(rows.reshape(self._copies, self._n_agents, *rows.shape[1:]).swapaxes(0, 1))
