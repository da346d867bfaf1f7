"""Grids of agents, numbered row by row: neighbours, corners, edges and inner places; these on grids of another size."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import networkx


def grid_side(n_agents: int) -> int:
    """m of an m×m grid; raises ValueError with the nearest possible numbers of agents otherwise."""
    side = math.isqrt(max(n_agents, 0))
    if n_agents < 1 or side * side != n_agents:
        nearest = [m * m for m in (side, side + 1) if m > 0]
        raise ValueError(f"{n_agents} agents make no m×m grid; the nearest that do: {' or '.join(map(str, nearest))}")
    return side


def grid_graph(shape: tuple[int, int]) -> "networkx.Graph":
    """Joins each place with those beside, above and below it."""
    import networkx  # 20 MiB that only processes are to spend which ask for a graph

    return networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(*shape), ordering="sorted")


def places(shape: tuple[int, int]) -> np.ndarray:
    """[rows · columns] `corner`, `edge` or `inner`: on how many borders a place lies, of the rows and of the columns.

    A single row has corners at its ends and edges between them.
    """
    rows, columns = (np.isin(np.arange(size), (0, size - 1)).astype(int) for size in shape)
    return np.array(["inner", "edge", "corner"])[(rows[:, None] + columns).ravel()]


def counterparts(shape: tuple[int, int], trained: tuple[int, int]) -> np.ndarray:
    """For each place of a grid the place of another one that is most like it.

    Corners have the same corner as their counterpart, edges the same edge, inner places an inner one; within these it
    is the one in the same relative position. A grid without inner rows (or columns) lends those on the nearer side.
    Grids of one shape have themselves.

    Args:
        shape: rows and columns of the one.
        trained: of the other.

    Returns:
        [rows · columns] int64, numbers in the other grid; both are numbered row by row.
    """
    rows, columns = (
        np.array([_counterpart(i, *sizes) for i in range(sizes[0])]) for sizes in zip(shape, trained, strict=True)
    )
    return (rows[:, None] * trained[1] + columns).ravel()


def _counterpart(i: int, size: int, trained: int) -> int:
    """The same for row `i` of `size` rows, or for a column."""
    if min(size, trained) >= 2:
        if i in (0, size - 1):
            return 0 if i == 0 else trained - 1
        if trained >= 3:
            return 1 + _same_share(i - 1, size - 2, trained - 2)
    return _same_share(i, size, trained)


def _same_share(i: int, size: int, trained: int) -> int:
    """Which of `trained` equal parts of a line the middle of part `i` of `size` lies in."""
    return (2 * i + 1) * trained // (2 * size)
