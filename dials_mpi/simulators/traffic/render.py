"""A picture of the streets: vehicles coloured by speed, lights at the stop lines."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from dials_mpi.simulators.traffic.network import HEADINGS

_LANE_WIDTH = 3.2
_VEHICLE = (5.0, 1.8)
"""Length and width, m; SUMO's defaults."""
_MAGNIFIED = 1.7
"""Vehicles are drawn larger than they are, to be seen at all on a large grid."""
_COLOURS = {"G": "#00a651", "y": "#ffc20e", "r": "#d7191c"}


def draw(simulator, axes, copy: int) -> tuple[ScalarMappable, str]:
    """Draws one copy of the GS, or of the first agent's intersection in the LS."""
    intersections = simulator.intersections
    network = intersections.network
    x0, y0 = network.origin(copy)
    width, height = (network.columns + 1) * network.edge_length, (network.rows + 1) * network.edge_length
    left, right, bottom, top = x0, x0 + width, y0 - height, y0
    axes.set(xlim=(left - 8, right + 8), ylim=(bottom - 8, top + 8), aspect="equal", xticks=[], yticks=[])
    axes.set_facecolor("#e8efe4")
    half = network.lanes * _LANE_WIDTH + 0.5
    for column in range(1, network.columns + 1):
        x = left + column * network.edge_length
        axes.add_patch(Rectangle((x - half, bottom), 2 * half, height, color="#5a5a5a", lw=0))
        axes.plot([x, x], [bottom, top], color="white", lw=0.5, ls=(0, (6, 6)))
    for row in range(1, network.rows + 1):
        y = top - row * network.edge_length
        axes.add_patch(Rectangle((left, y - half), width, 2 * half, color="#5a5a5a", lw=0))
        axes.plot([left, right], [y, y], color="white", lw=0.5, ls=(0, (6, 6)))

    first = copy * network.rows * network.columns
    states = intersections.states()[first : first + network.rows * network.columns]
    for (_, row, column), state in zip(network.intersections, states, strict=False):
        _draw_lights(axes, network, left + column * network.edge_length, top - row * network.edge_length, state)

    vehicles = intersections.sumo.poses()
    x, y = vehicles[:, 0], vehicles[:, 1]
    here = vehicles[(x >= left - 1) & (x <= right + 1) & (y >= bottom - 1) & (y <= top + 1)]
    colours = ScalarMappable(Normalize(0, 3.6 * network.speed_limit), "plasma")
    axes.add_collection(
        PolyCollection(
            [_outline(*vehicle[:3]) for vehicle in here], facecolors=colours.to_rgba(3.6 * here[:, 3]), zorder=3
        )
    )
    axes.set_title(f"second {intersections.elapsed}: {len(here)} vehicles", fontsize=9)
    return colours, "speed (km/h)"


def _draw_lights(axes, network, x: float, y: float, state: str) -> None:
    """A bar in the light's colour across the incoming lanes, at the stop lines."""
    width = network.lanes * _LANE_WIDTH
    away = network.junction_radius + width
    for approach, (down, right) in enumerate(HEADINGS.values()):
        # A vehicle that heads (right, -down) drives on the right of the street's middle, at (-down, -right).
        ahead, side = np.array([right, -down]), np.array([-down, -right])
        near = np.array([x, y]) - away * ahead
        ends = np.stack([near, near + width * side])
        colour = _COLOURS[state[approach * network.lanes]]
        axes.plot(*ends.T, color=colour, lw=3, solid_capstyle="butt", zorder=4)


def _outline(x: float, y: float, heading: float) -> np.ndarray:
    """[4, 2] corners of a vehicle; its front bumper is at (x, y)."""
    ahead = np.array([np.sin(np.radians(heading)), np.cos(np.radians(heading))])
    side = np.array([-ahead[1], ahead[0]])
    length, width = _VEHICLE[0], _VEHICLE[1] * _MAGNIFIED
    front = np.array([x, y])
    back = front - length * ahead
    return np.array(
        [front - width / 2 * side, front + width / 2 * side, back + width / 2 * side, back - width / 2 * side]
    )
