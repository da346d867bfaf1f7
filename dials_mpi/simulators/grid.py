"""What domains on square grids share."""

import math


def grid_side(n_agents: int) -> int:
    """m of an m×m grid; raises ValueError with the nearest possible numbers of agents otherwise."""
    side = math.isqrt(max(n_agents, 0))
    if n_agents < 1 or side * side != n_agents:
        nearest = [m * m for m in (side, side + 1) if m > 0]
        raise ValueError(f"{n_agents} agents make no m×m grid; the nearest that do: {' or '.join(map(str, nearest))}")
    return side
