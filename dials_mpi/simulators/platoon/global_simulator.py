"""The platoon's GS: N vehicles in a row behind a scripted leader, in B copies."""

import numpy as np

from dials_mpi.simulators.interface import GlobalSimulator, Step
from dials_mpi.simulators.platoon.dynamics import (
    DT,
    GAINS,
    HIGHEST_ACCELERATION,
    LOWEST_HEADWAY,
    TARGET_HEADWAY,
    TARGET_SPEED,
    accelerate,
    advance,
    ahead,
    optimal_velocity,
    rewards,
)
from dials_mpi.simulators.platoon.handcoded import handcoded_actions

FIRST_HEADWAYS = (30.0, 50.0)
"""m, of the first vehicle in catch-up; uniform between them."""
FIRST_SPEEDS = (22.5, 37.5)
"""m/s, of all vehicles in slow-down; uniform between them."""
BRAKING_STEPS = 299
"""Steps in which the leader of slow-down comes down to the target speed."""
LOOK_AHEAD = {"catch-up": 1.0, "slow-down": 2.0}
"""s, of the greedy driver."""
SPEED_DIFFERENCE = 5.0
"""m/s that make one unit of the observation, which shows `MOST_DIFFERENCE` of them at most."""
MOST_DIFFERENCE = 2.0


class PlatoonGlobalSimulator(GlobalSimulator):
    """B copies of N vehicles.

    Args:
        scenario: `catch-up` or `slow-down`.
        collision_penalty: G.
        controller: one of `handcoded.CONTROLLERS` that drives instead of `step`'s actions.

    Attributes:
        headway, speed, acceleration: [N, B] m, m/s, m/s².
        leader: [B] m/s, speed of the scripted vehicle.
        collided: [B] bool; what has collided stays as it is.
        now: steps since the episode began.
    """

    def __init__(
        self, n_vehicles: int, scenario: str, collision_penalty: float, copies: int, controller: str | None = None
    ):
        self._shape = (n_vehicles, copies)
        self._scenario = scenario
        self._collision_penalty = collision_penalty
        self._controller = controller

    def seed(self, generators):
        self._generators = generators

    def reset(self):
        drawn = np.array([generator.random() for generator in self._generators])
        self.headway = np.full(self._shape, TARGET_HEADWAY)
        self.speed = np.full(self._shape, TARGET_SPEED)
        if self._scenario == "catch-up":
            self.headway[0] = _between(FIRST_HEADWAYS, drawn)
        else:
            self.speed[:] = _between(FIRST_SPEEDS, drawn)
        self.acceleration = np.zeros(self._shape)
        self.leader = self._first_speed = self.speed[0].copy()
        self.collided = np.zeros(self._shape[1], bool)
        self.now = 0
        return self._observations()

    def step(self, actions):
        speed_ahead = ahead(self.speed, self.leader)
        if self._controller:
            look_ahead = LOOK_AHEAD[self._scenario]
            actions = handcoded_actions(self._controller, self.headway, self.speed, speed_ahead, look_ahead)
        self._actions = np.asarray(actions)
        self.now += 1
        speed, acceleration = accelerate(self.headway, self.speed, speed_ahead, GAINS[self._actions])
        leader = self._leader_speed()
        headway = advance(self.headway, speed_ahead - self.speed, ahead(speed, leader) - speed)
        self.headway = np.where(self.collided, self.headway, headway)
        self.speed = np.where(self.collided, self.speed, speed)
        self.acceleration = np.where(self.collided, self.acceleration, acceleration)
        self.leader = np.where(self.collided, self.leader, leader)
        self.collided = (self.headway < LOWEST_HEADWAY).any(axis=0)
        paid = np.where(self.collided, -self._collision_penalty, rewards(self.headway, self.speed, self.acceleration))
        terminated = np.broadcast_to(self.collided, self._shape).copy()
        return Step(self._observations(), paid.astype(np.float32), terminated)

    def actions(self):
        return self._actions

    def _leader_speed(self) -> np.ndarray:
        """[B] as it is now; in catch-up it starts with the target speed."""
        return self._first_speed + (TARGET_SPEED - self._first_speed) * min(self.now / BRAKING_STEPS, 1.0)

    def _observations(self) -> np.ndarray:
        """[N, B, 5] float32."""
        difference = ahead(self.speed, self.leader) - self.speed
        wanted = optimal_velocity(self.headway) - self.speed
        observations = np.empty((*self._shape, 5), np.float32)
        observations[..., 0] = (self.speed - TARGET_SPEED) / TARGET_SPEED
        observations[..., 1] = np.clip(difference / SPEED_DIFFERENCE, -MOST_DIFFERENCE, MOST_DIFFERENCE)
        observations[..., 2] = np.clip(wanted / SPEED_DIFFERENCE, -MOST_DIFFERENCE, MOST_DIFFERENCE)
        observations[..., 3] = (self.headway + difference * DT - TARGET_HEADWAY) / TARGET_HEADWAY
        observations[..., 4] = self.acceleration / HIGHEST_ACCELERATION
        return observations


def _between(bounds: tuple[float, float], share: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * share
