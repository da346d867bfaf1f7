"""Hand-coded controllers: SUMO's actuated lights, which the network itself brings, and a fixed-time plan."""

import numpy as np

from dials_mpi.simulators.traffic.intersections import SWITCH

CONTROLLERS = ("actuated", "fixed-time")


class FixedTime:
    """All K lights switch together, twice in a cycle.

    Args:
        n_lights: K.
        cycle: s, yellow included.
    """

    CYCLE = 14
    """The best of 8, 10, 12, … 24, 28, 32, 40, 60 and 80 on the 2×2 and the 5×5 grid. It depends on the length of the
    blocks: a vehicle takes 12 s from one stop line to the next."""

    def __init__(self, n_lights: int, cycle: int = CYCLE):
        self._n_lights = n_lights
        self._cycle = cycle
        self.reset()

    def reset(self) -> None:
        self._elapsed = 0

    def act(self) -> np.ndarray:
        """Actions [K] of the next step."""
        self._elapsed += 1
        switch = self._elapsed % (self._cycle // 2) == 0
        return np.full(self._n_lights, SWITCH if switch else 0)
