"""A picture of the warehouse: floor, shelves, items by age, robots."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from dials_mpi.simulators.warehouse.regions import NEVER, SHELVES, SIZE

_OLD = 50
"""Steps at which the colour of an item ends."""


def draw(simulator, axes, copy: int) -> tuple[ScalarMappable, str]:
    """Draws one copy of the GS, or the first agent's region of the LS. Learning robots are numbered."""
    floor = simulator.floor
    learning = getattr(simulator, "learning", np.array([0]))
    regions = np.arange(len(floor.positions)) if hasattr(simulator, "learning") else learning
    side = round(len(regions) ** 0.5)
    pitch = SIZE - 1
    row, column = np.divmod(np.arange(len(regions)), side)
    size = pitch * side + 1
    axes.set(xlim=(-0.6, size - 0.4), ylim=(size - 0.4, -0.6), aspect="equal", xticks=[], yticks=[])
    axes.add_patch(Rectangle((-0.5, -0.5), size, size, facecolor="#f4f1ea", edgecolor="black"))

    shelves = np.stack([pitch * row, pitch * column], axis=-1)[:, None] + SHELVES
    appeared = floor.items(regions)[:, :, copy].ravel()
    cells, first = np.unique(shelves.reshape(-1, 2), axis=0, return_index=True)
    appeared = appeared[first]
    for (i, j), since in zip(cells, appeared, strict=True):
        axes.add_patch(Rectangle((j - 0.45, i - 0.45), 0.9, 0.9, facecolor="#d9cdb8", edgecolor="#b5a68a", lw=0.5))
        if since != NEVER:
            colour = _AGES.to_rgba(floor.now - since)
            axes.add_patch(Rectangle((j - 0.28, i - 0.28), 0.56, 0.56, facecolor=colour, edgecolor="black", lw=0.5))
    i, j = np.divmod(floor.positions[regions, copy], SIZE)
    points_per_cell = axes.get_window_extent().width / axes.figure.dpi * 72 / size
    for k, (y, x) in enumerate(zip(pitch * row + i, pitch * column + j, strict=True)):
        agent = np.flatnonzero(learning == k)
        axes.plot(
            x, y, "o", ms=0.62 * points_per_cell, mfc="#0072b2" if len(agent) else "#999999", mec="white", mew=0.8
        )
        if len(agent) and hasattr(simulator, "learning"):
            axes.text(x, y, str(agent[0]), color="white", size=0.3 * points_per_cell, ha="center", va="center_baseline")
    axes.set_title(f"step {floor.now}; blue robots learn, grey ones are scripted", fontsize=9)
    return _AGES, f"age of an item (steps, {_OLD} or more)"


_AGES = ScalarMappable(Normalize(0, _OLD), "YlOrRd")
