"""Scripted robots: the ring around the learning block, and the hand-coded reference."""

import numpy as np

from dials_mpi.simulators.warehouse.regions import FIRST_ACTION, N_ACTIONS, NEVER, NO_SHELF, PATH_LENGTH

RULES = ("closest", "oldest")


class HandcodedRobots:
    """Robots that walk to an item and keep it as their target while it exists; with no item, a random action.

    Args:
        rule: `closest`, the nearest item by path length, or `oldest`, the item that has been there longest; the first
            shelf in the order of the observation among equals.
        n_robots, copies: K, B.
    """

    def __init__(self, rule: str, n_robots: int, copies: int):
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} of a hand-coded robot: choose one of {', '.join(RULES)}")
        self._rule = rule
        self._targets = np.full((n_robots, copies), NO_SHELF, np.intp)

    def reset(self) -> None:
        self._targets[:] = NO_SHELF

    def act(self, positions: np.ndarray, items: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions [K, B] from positions [K, B], items [K, 12, B] (`Floor.items`) and uniform noise [K, B]."""
        free = items == NEVER
        closest = self._rule == "closest"
        cost = np.where(free, NEVER, PATH_LENGTH[positions].swapaxes(1, 2)) if closest else items
        best = cost.argmin(axis=1)
        target = np.minimum(self._targets, NO_SHELF - 1)[:, None]
        lost = (self._targets == NO_SHELF) | np.take_along_axis(free, target, axis=1)[:, 0]
        self._targets = np.where(lost, best, self._targets)
        idle = free.all(axis=1)
        self._targets[idle] = NO_SHELF
        walk = FIRST_ACTION[positions, np.minimum(self._targets, NO_SHELF - 1)]
        return np.where(idle, (noise * N_ACTIONS).astype(np.intp), walk)
