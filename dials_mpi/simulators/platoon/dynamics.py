"""Car following in a platoon: the optimal velocity model, its constants, and one step of all vehicles.

| symbol | meaning                                                  |
|--------|----------------------------------------------------------|
| h, v   | headway to the vehicle ahead (m), speed (m/s)            |
| u      | acceleration (m/s²)                                      |
| α, β   | gains that an action chooses: headway gain, speed gain   |

Discretised as in the public code of Chu et al. (2020), which DMPO took over. Arrays are float64.
"""

import numpy as np

DT = 0.1
"""s, control interval."""
TARGET_HEADWAY = 20.0
"""m, h*."""
TARGET_SPEED = 15.0
"""m/s, v*."""
LOWEST_HEADWAY = 1.0
"""m; below it vehicles have collided."""
STOP_HEADWAY = 5.0
"""m, h_s: up to it the optimal velocity is 0."""
GO_HEADWAY = 35.0
"""m, h_g: from it on the optimal velocity is the highest speed."""
HIGHEST_SPEED = 30.0
"""m/s."""
HIGHEST_ACCELERATION = 2.5
"""m/s², in either direction."""
SPEED_WEIGHT = 1.0
"""a, of (v - v*)² in the reward."""
ACCELERATION_WEIGHT = 0.1
"""b, of u² in the reward."""
GAINS = np.array([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
"""[4, 2] α and β (1/s) of each action."""


def optimal_velocity(headway: np.ndarray) -> np.ndarray:
    """v̄(h), m/s: 0 up to `STOP_HEADWAY`, a half cosine, `HIGHEST_SPEED` from `GO_HEADWAY` on."""
    share = np.clip((headway - STOP_HEADWAY) / (GO_HEADWAY - STOP_HEADWAY), 0.0, 1.0)
    return HIGHEST_SPEED / 2 * (1 - np.cos(np.pi * share))


def ahead(speed: np.ndarray, leader: np.ndarray) -> np.ndarray:
    """[N, B] speeds of the vehicles ahead: the scripted leader's [B], then those of all but the last."""
    return np.concatenate([leader[None], speed[:-1]])


def accelerate(
    headway: np.ndarray, speed: np.ndarray, speed_ahead: np.ndarray, gains: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Speeds after `DT` and the accelerations that have come of the model's and of all limits.

    A speed above the highest, which slow-down can start with, is cut at once, whatever acceleration that is.

    Args:
        headway, speed, speed_ahead: [N, B].
        gains: [..., 2], α and β; all but the last axis broadcasts with the others.
    """
    wanted = gains[..., 0] * (optimal_velocity(headway) - speed) + gains[..., 1] * (speed_ahead - speed)
    limited = np.clip(wanted, -HIGHEST_ACCELERATION, HIGHEST_ACCELERATION)
    after = np.clip(speed + limited * DT, 0.0, HIGHEST_SPEED)
    return after, (after - speed) / DT


def advance(headway: np.ndarray, difference: np.ndarray, difference_after: np.ndarray) -> np.ndarray:
    """Headways after `DT` by the trapezoidal rule, of what vehicles ahead are faster by before and after, m/s."""
    return headway + DT / 2 * (difference + difference_after)


def rewards(headway: np.ndarray, speed: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """Of each vehicle, for what a step has led to."""
    return -(
        (headway - TARGET_HEADWAY) ** 2
        + SPEED_WEIGHT * (speed - TARGET_SPEED) ** 2
        + ACCELERATION_WEIGHT * acceleration**2
    )
