"""The warehouse GS: an m×m block of robots that act by `step`'s actions, with or without a ring of scripted ones."""

import numpy as np

from dials_mpi.simulators.interface import GlobalSimulator, Step
from dials_mpi.simulators.noise import NoiseBuffer
from dials_mpi.simulators.warehouse.handcoded import HandcodedRobots
from dials_mpi.simulators.warehouse.regions import (
    CENTRE,
    N_SHELVES,
    NEIGHBOURS,
    SHELVES,
    SIZE,
    SOURCE_CLASS,
    Floor,
)


def shelf_cells(side: int) -> np.ndarray:
    """[side², 12] numbers of the shelf cells in each region of a side×side floor; a shared cell has one number."""
    pitch = SIZE - 1
    width = pitch * side + 1
    row, column = np.divmod(np.arange(side * side), side)
    coordinates = (pitch * row[:, None] + SHELVES[:, 0]) * width + pitch * column[:, None] + SHELVES[:, 1]
    return np.unique(coordinates, return_inverse=True)[1].reshape(coordinates.shape)


class WarehouseGlobalSimulator(GlobalSimulator):
    """B copies of the whole floor.

    Args:
        block: m, robots along a side of the learning block.
        border: `scripted` for a ring of scripted robots around the block, `none` for walls.
        item_probability: chance per step of a free shelf cell to get an item.
        controller: a rule of `HandcodedRobots` that drives the block instead of `step`'s actions.
    """

    def __init__(self, block: int, border: str, item_probability: float, copies: int, controller: str | None = None):
        ring = 1 if border == "scripted" else 0
        side = block + 2 * ring
        grid = np.arange(side * side).reshape(side, side)
        inner = slice(ring, side - ring)
        self.learning = grid[inner, inner].ravel()
        self._ring = np.setdiff1d(grid, self.learning)
        self.floor = Floor(shelf_cells(side), copies)
        # Beyond a wall stands a robot that never leaves its centre: not on any shelf, so without influence.
        nobody = side * side
        padded = np.pad(grid, 1, constant_values=nobody)
        row, column = np.divmod(self.learning, side)
        self._neighbours = np.stack([padded[row + 1 + down, column + 1 + right] for down, right in NEIGHBOURS], axis=1)
        self._item_probability = np.float32(item_probability)
        self._copies = copies
        self._ring_robots = HandcodedRobots("closest", len(self._ring), copies)
        self._controller = HandcodedRobots(controller, block * block, copies) if controller else None

    def seed(self, generators):
        n_robots = len(self.learning) + len(self._ring)
        self._noise = NoiseBuffer(generators, (self.floor.n_cells + n_robots,))

    def reset(self):
        appears, _ = self._draw()
        self._ring_robots.reset()
        if self._controller:
            self._controller.reset()
        self.floor.reset(appears)
        self._observations = self.floor.observations(self.learning)
        return self._observations

    def step(self, actions):
        floor = self.floor
        appears, noise = self._draw()
        joint = np.empty_like(floor.positions)
        joint[self._ring] = self._ring_robots.act(
            floor.positions[self._ring], floor.items(self._ring), noise[self._ring]
        )
        if self._controller:
            actions = self._controller.act(
                floor.positions[self.learning], floor.items(self.learning), noise[self.learning]
            )
        joint[self.learning] = self._actions = np.asarray(actions)
        floor.step(joint, appears)
        self._observations = floor.observations(self.learning)
        return Step(self._observations, floor.rewards(self.learning))

    def actions(self):
        return self._actions

    def local_states(self):
        return self._observations

    def influence_sources(self):
        positions = np.concatenate([self.floor.positions, np.full((1, self._copies), CENTRE)])
        classes = SOURCE_CLASS[np.arange(len(NEIGHBOURS))[:, None], positions[self._neighbours]]
        return classes.swapaxes(1, 2)

    def draws(self):
        """[N, B, 12] bool, the shelf cells of every region that get an item if they are free."""
        return self._appears[self.floor.cells[self.learning, :N_SHELVES]].swapaxes(1, 2)

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """New items [n_cells, B] and uniform noise [R, B] of one step."""
        noise = self._noise.next().T
        self._appears = noise[: self.floor.n_cells] < self._item_probability
        return self._appears, noise[self.floor.n_cells :]
