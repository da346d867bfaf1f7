"""Traffic lights and the roads that lead to them; shared by the GS and the LS.

An intersection has four approaches, from north, east, south and west, of one or more lanes. Each incoming lane is cut
into cells counted from the stop line; a cell is 1 if the front of a vehicle is in it. The farthest cell tells who has
just entered: it is the lane's influence source. The others are the local state.

A light goes through four phases: green for north and south, yellow after it, green for east and west, yellow after it.
"""

import numpy as np

from dials_mpi.simulators.traffic.network import GREENS, HEADINGS, RoadNetwork, light_state
from dials_mpi.simulators.traffic.sumo import Sumo, Vehicles

APPROACHES = len(HEADINGS)
PHASES = 4
N_ACTIONS = 2
SWITCH = 1
_ONE_HOT = np.eye(PHASES, dtype=np.uint8)
_SPEED_UNIT = 2.0**-20
"""Speeds are summed as whole multiples of this: then the sum does not depend on the order of the vehicles."""


class Intersections:
    """K intersections of one simulation, in the order of `network.intersections`.

    Args:
        network: its lanes are numbered by intersection, approach and lane.
        yellow: s of yellow after a switch.
        cell_length: m.
        backend: of `Sumo`.
        files: options that load the network.

    Attributes:
        network: as given.
        elapsed: s since the episode began.
        phases: [K] int, 0 … 3.
        bits: [K, lanes, cells] uint8 over the incoming lanes, north first; the nearest cell first.
        counts: [K, lanes] vehicles on each incoming lane.
        rewards: [K] float32, mean speed of the vehicles on the incoming lanes / speed limit; 0 if there is none.
    """

    def __init__(self, network: RoadNetwork, yellow: int, cell_length: float, backend: str, files: list[str]):
        places = network.intersections
        self.network = network
        self._yellow = yellow
        self._cell_length = cell_length
        self._names = [network.light(*place) for place in places]
        edges = [edge for place in places for edge in network.approaches(*place)]
        ids = [f"{edge}_{lane}" for edge in edges for lane in range(network.lanes)]
        self.sumo = Sumo(backend, files, {name: i for i, name in enumerate(ids)}, watches_lights=network.actuated)
        greens = [light_state(served, "G", network.lanes) for served in GREENS]
        self._states = [state for green in greens for state in (green, green.replace("G", "y"))]
        self._phase_of = {state: phase for phase, state in enumerate(self._states)}
        lanes = APPROACHES * network.lanes
        self.elapsed = 0
        self.phases = np.zeros(len(places), np.int64)
        self._timers = np.zeros(len(places), np.int64)
        self.bits = np.zeros((len(places), lanes, round(network.edge_length / cell_length)), np.uint8)
        self.counts = np.zeros((len(places), lanes), np.int64)
        self.rewards = np.zeros(len(places), np.float32)

    def reset(self) -> None:
        """Empty roads, green for north and south, no switch under way."""
        self.sumo.restart()
        self.elapsed = 0
        for array in (self.phases, self._timers, self.bits, self.counts, self.rewards):
            array[:] = 0
        if not self.network.actuated:
            self._show(np.ones(len(self.phases), bool))

    def act(self, actions: np.ndarray) -> None:
        """Switches lights [K] whose action is `SWITCH`. While a light is yellow its action does nothing."""
        yellow = self._timers > 0
        self._timers -= yellow
        switched = ~yellow & (actions == SWITCH)
        self._timers[switched] = self._yellow
        changed = switched | (yellow & (self._timers == 0))
        self.phases[changed] = (self.phases[changed] + 1) % PHASES
        self._show(changed)

    def step(self, drop_pending: bool = False) -> None:
        """One second of SUMO; `drop_pending` as there."""
        self._read(self.sumo.step(drop_pending))
        self.elapsed += 1
        if self.network.actuated:
            states = self.sumo.light_states()
            self.phases[:] = [self._phase_of[states[name]] for name in self._names]

    def lights(self) -> np.ndarray:
        """[K, 4] uint8, one-hot phases."""
        return _ONE_HOT[self.phases]

    def states(self) -> list[str]:
        """What each light shows, in SUMO's notation."""
        return [self._states[phase] for phase in self.phases]

    def local_states(self) -> np.ndarray:
        """[K, lanes × (cells - 1)] uint8."""
        return self.bits[:, :, :-1].reshape(len(self.bits), -1)

    def _show(self, which: np.ndarray) -> None:
        for k in np.flatnonzero(which).tolist():
            self.sumo.set_light(self._names[k], self._states[self.phases[k]])

    def _read(self, vehicles: Vehicles) -> None:
        k, lanes, cells = self.bits.shape
        cell = ((self.network.edge_length - vehicles.positions) / self._cell_length).astype(np.int64)
        self.bits[:] = 0
        self.bits.reshape(-1, cells)[vehicles.lanes, np.clip(cell, 0, cells - 1)] = 1
        self.counts[:] = np.bincount(vehicles.lanes, minlength=k * lanes).reshape(k, lanes)
        units = np.rint(vehicles.speeds / _SPEED_UNIT)
        total = np.bincount(vehicles.lanes // lanes, weights=units, minlength=k) * _SPEED_UNIT
        self.rewards[:] = total / np.maximum(self.counts.sum(axis=1), 1) / self.network.speed_limit
