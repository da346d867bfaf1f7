"""A picture of the platoon: where vehicles are behind the leader, where they should be, and how fast they go."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from dials_mpi.simulators.platoon.dynamics import DT, HIGHEST_SPEED, TARGET_HEADWAY

LENGTH = 5.0
"""m of a vehicle, in the picture only: headways are gaps."""


def draw(simulator, axes, copy: int) -> tuple[ScalarMappable, str]:
    """Draws one copy of the GS: a row for each vehicle, and in it a line where its headway would be right."""
    headway = simulator.headway[:, copy]
    speed = np.array([simulator.leader[copy], *simulator.speed[:, copy]])
    fronts = -np.concatenate([[0.0], np.cumsum(headway + LENGTH)])
    labels = ["leader", *(f"{i}: {h:.1f} m" for i, h in enumerate(headway))]
    axes.set(xlim=(fronts[-1] - 2 * LENGTH, LENGTH), ylim=(len(headway) + 0.6, -0.6), xlabel="m behind the leader")
    axes.set_yticks(range(len(fronts)), [f"{label}, {v:.1f} m/s" for label, v in zip(labels, speed, strict=True)])
    for row, (front, v) in enumerate(zip(fronts, speed, strict=True)):
        corner, colour = (front - LENGTH, row - 0.25), _SPEEDS.to_rgba(v)
        axes.add_patch(Rectangle(corner, LENGTH, 0.5, facecolor=colour, edgecolor="black", lw=0.5))
        if row:
            target = fronts[row - 1] - LENGTH - TARGET_HEADWAY
            axes.plot([target, target], [row - 0.45, row + 0.45], color="#999999", lw=1)
    collided = ", collided" if simulator.collided[copy] else ""
    axes.set_title(f"after {simulator.now * DT:.1f} s{collided}; grey: where headways are right", fontsize=9)
    return _SPEEDS, "speed (m/s)"


_SPEEDS = ScalarMappable(Normalize(0, HIGHEST_SPEED), "viridis")
