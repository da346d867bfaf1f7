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

    CYCLE = 16
    """The best of 16, 20, 30, 40, 60, 80 and 100 on the 2×2 grid."""

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
