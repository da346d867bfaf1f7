"""The warehouse LS: regions that know of their neighbours by influence sources alone."""

import numpy as np

from dials_mpi.simulators.interface import LocalSimulator, Step
from dials_mpi.simulators.noise import NoiseBuffer
from dials_mpi.simulators.warehouse.regions import N_SHELVES, NEIGHBOURS, SHELF_OF_CLASS, Floor


class WarehouseLocalSimulator(LocalSimulator):
    """The regions of A agents, disjoint, in B copies. All regions are alike, so only their number matters."""

    def __init__(self, n_agents: int, item_probability: float, copies: int):
        self.floor = Floor(np.arange(n_agents * N_SHELVES).reshape(n_agents, N_SHELVES), copies)
        self._item_probability = np.float32(item_probability)
        self._copies = copies
        self._agent = np.arange(n_agents)[:, None, None]
        self._source = np.arange(len(NEIGHBOURS))[:, None]
        self._given: np.ndarray | None = None

    def seed(self, generators):
        self._noise = NoiseBuffer(generators, (N_SHELVES, self._copies))

    def reset(self):
        self.floor.reset(self._appears())
        self._observations = self.floor.observations()
        return self._observations

    def step(self, actions, influence_sources):
        shelves = SHELF_OF_CLASS[self._source, influence_sources.swapaxes(1, 2)]
        self.floor.step(actions, self._appears(), visited=self.floor.cells[self._agent, shelves])
        self._observations = self.floor.observations()
        return Step(self._observations, self.floor.rewards(slice(None)))

    def local_states(self):
        return self._observations

    def take_draws(self, draws):
        self._given = draws

    def _appears(self) -> np.ndarray:
        """[12 A, B], the next new items: those of `take_draws`, else of the agents' own streams."""
        given, self._given = self._given, None
        if given is not None:
            return given.swapaxes(1, 2).reshape(-1, self._copies)
        return self._noise.next().reshape(-1, self._copies) < self._item_probability
