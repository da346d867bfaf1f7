"""A 5×5 region, the floor that regions make up, and the step order; shared by the GS and the LS.

Shelf cells are the three middle cells of each side of a region, 12 in all, in the order of the observation: top row,
bottom row, then for the three inner rows left and right. Neighbouring regions overlap by one row or column, so a shelf
cell of one region can be a shelf cell of a neighbour, too. An item is stored as the step at which it appeared, a free
cell as `NEVER`; the item's age is the difference to the current step.
"""

import numpy as np

SIZE = 5
CENTRE = 12
N_ACTIONS = 4  # up, down, left, right
N_SHELVES = 12
NO_SHELF = N_SHELVES
NEVER = np.int16(np.iinfo(np.int16).max)
OBSERVATION_SIZE = SIZE * SIZE + N_SHELVES

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
SHELVES = np.array(
    [(0, 1), (0, 2), (0, 3), (4, 1), (4, 2), (4, 3), (1, 0), (1, 4), (2, 0), (2, 4), (3, 0), (3, 4)], np.intp
)

NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # order of the influence sources: right, below, left, above
NOT_ON_SHARED_SHELF = 3
SIDES = np.array([(7, 9, 11), (3, 4, 5), (6, 8, 10), (0, 1, 2)], np.intp)
"""[4, 3]: the shelves that a region shares with each neighbour, counted along the side."""


def _next_positions() -> np.ndarray:
    table = np.empty((SIZE * SIZE, N_ACTIONS), np.intp)
    for position in range(SIZE * SIZE):
        row, column = divmod(position, SIZE)
        for action, (down, right) in enumerate(MOVES):
            to = (row + down, column + right)
            inside = 0 <= to[0] < SIZE and 0 <= to[1] < SIZE
            corner = to[0] in (0, SIZE - 1) and to[1] in (0, SIZE - 1)
            sideways = (row in (0, SIZE - 1) and right != 0) or (column in (0, SIZE - 1) and down != 0)
            table[position, action] = position if not inside or corner or sideways else to[0] * SIZE + to[1]
    return table


def _paths() -> tuple[np.ndarray, np.ndarray]:
    """Path length [25, 12] from every position to every shelf, and the first action [25, 12] of a shortest path."""
    unreachable = np.int16(1000)
    lengths = np.full((SIZE * SIZE, N_SHELVES), unreachable, np.int16)
    lengths[SHELVES @ (SIZE, 1), np.arange(N_SHELVES)] = 0
    for _ in range(SIZE * SIZE):
        lengths = np.minimum(lengths, 1 + lengths[NEXT_POSITION].min(axis=1))
    # Standing on the shelf already, the best action is one that leaves the robot there: it has length 0 behind it.
    return lengths, lengths[NEXT_POSITION].argmin(axis=1)


NEXT_POSITION = _next_positions()
"""[25, 4] position after each action."""
SHELF_AT = np.full(SIZE * SIZE, NO_SHELF, np.intp)
"""[25] shelf 0 … 11 at a position, or `NO_SHELF`."""
SHELF_AT[SHELVES @ (SIZE, 1)] = np.arange(N_SHELVES)
PATH_LENGTH, FIRST_ACTION = _paths()

SOURCE_CLASS = np.full((len(NEIGHBOURS), SIZE * SIZE), NOT_ON_SHARED_SHELF, np.uint8)
"""[4, 25] class of an influence source by the neighbour's position in its own region. The side that a region shares
with its right neighbour is that neighbour's left side, and so on."""
for _source in range(len(NEIGHBOURS)):
    _shared = SIDES[(_source + 2) % 4]
    SOURCE_CLASS[_source, SHELVES[_shared] @ (SIZE, 1)] = np.arange(3)
SHELF_OF_CLASS = np.concatenate([SIDES, np.full((4, 1), NO_SHELF)], axis=1)
"""[4, 4] shelf of the own region that a class of each influence source stands for, or `NO_SHELF`."""


class Floor:
    """R regions with a robot in each, in B copies.

    Args:
        shelf_cells: [R, 12] the floor's cell under every shelf; regions that overlap name the same cell.
        copies: B.

    Attributes:
        positions: [R, B] the robots' positions 0 … 24 in their regions.
        appeared: [n_cells + 1, B] int16, the step at which the item on a cell appeared or `NEVER`. The last row stands
            for "no shelf" and is always free.
        now: steps since the episode began.
    """

    def __init__(self, shelf_cells: np.ndarray, copies: int):
        n_regions = len(shelf_cells)
        self.n_cells = int(shelf_cells.max()) + 1
        self.cells = np.concatenate([shelf_cells, np.full((n_regions, 1), self.n_cells)], axis=1)
        self.positions = np.full((n_regions, copies), CENTRE, np.intp)
        self.appeared = np.full((self.n_cells + 1, copies), NEVER, np.int16)
        self.now = 0
        self._shelf_cells = shelf_cells
        self._region = np.arange(n_regions)[:, None]
        self._copy = np.arange(copies)

    def reset(self, appears: np.ndarray) -> None:
        """A new episode: robots at their centres, new items where `appears` [n_cells, B] is true."""
        self.now = 0
        self.positions[:] = CENTRE
        self.appeared[:] = NEVER
        self._place(appears)

    def step(self, actions: np.ndarray, appears: np.ndarray, visited: np.ndarray | None = None) -> None:
        """Ages +1, robots move, rewards, items under robots vanish, new items appear.

        Influence sources are where robots stand after moving, so they can be read at any time after the step.

        Args:
            actions: [R, B] integers.
            appears: [n_cells, B] bool, free cells that get an item.
            visited: [R, 4, B] cells under robots that are not on this floor (influence sources), or None.
        """
        self.now += 1
        self.positions = NEXT_POSITION[self.positions, actions]
        under_robot = self.cells[self._region, SHELF_AT[self.positions]]
        self._item_under_robot = self.appeared[under_robot, self._copy]
        self._oldest_before = self.items().min(axis=1)
        self.appeared[under_robot, self._copy] = NEVER
        if visited is not None:
            self.appeared[visited, self._copy] = NEVER
        self._place(appears)

    def rewards(self, regions: slice | np.ndarray) -> np.ndarray:
        """[len(regions), B] float32, of the last step: age of the item under the robot / age of the region's oldest."""
        item = self._item_under_robot[regions]
        oldest = self._oldest_before[regions]
        # Where there is no item the quotient is 0 / 1; an item that exists is at least one step old.
        age = np.where(item == NEVER, 0, self.now - item)
        oldest_age = np.where(item == NEVER, 1, self.now - oldest)
        return np.divide(age, oldest_age, dtype=np.float32)

    def items(self, regions: slice | np.ndarray = slice(None)) -> np.ndarray:
        """[len(regions), 12, B] int16, `appeared` seen from the regions."""
        return self.appeared[self._shelf_cells[regions]]

    def observations(self, regions: slice | np.ndarray = slice(None)) -> np.ndarray:
        """[len(regions), B, 37] uint8: one-hot position, then a bit for each shelf with an item."""
        positions = self.positions[regions]
        observations = np.zeros((*positions.shape, OBSERVATION_SIZE), np.uint8)
        np.put_along_axis(observations, positions[..., None], 1, axis=2)
        observations[..., SIZE * SIZE :] = (self.items(regions) != NEVER).swapaxes(1, 2)
        return observations

    def _place(self, appears: np.ndarray) -> None:
        items = self.appeared[:-1]
        np.copyto(items, np.int16(self.now), where=appears & (items == NEVER))
