"""Hand-coded drivers: two with fixed gains, and one that looks ahead."""

import numpy as np

from dials_mpi.simulators.platoon.dynamics import GAINS, HIGHEST_SPEED, accelerate, rewards

FIXED = {"do-nothing": 0, "constant": 3}
"""Actions of drivers that always take the same one: no gain at all, and both."""
CONTROLLERS = (*FIXED, "greedy")


def handcoded_actions(
    controller: str, headway: np.ndarray, speed: np.ndarray, speed_ahead: np.ndarray, seconds: float
) -> np.ndarray:
    """Actions [N, B] for headways, speeds and speeds ahead [N, B].

    Args:
        seconds: how far the greedy driver looks. It takes the action whose acceleration, kept up for so long behind a
            vehicle that keeps its speed, leads to the highest reward of its own.
    """
    if controller in FIXED:
        return np.full(headway.shape, FIXED[controller])
    gains = GAINS[:, None, None]
    _, acceleration = accelerate(headway, speed, speed_ahead, gains)
    then = headway + (speed_ahead - speed) * seconds - acceleration * seconds**2 / 2
    return rewards(then, np.clip(speed + acceleration * seconds, 0.0, HIGHEST_SPEED), acceleration).argmax(axis=0)
