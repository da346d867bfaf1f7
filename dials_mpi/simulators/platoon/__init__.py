"""Cooperative adaptive cruise control (Chu et al., 2020; DMPO): a platoon that closes a gap, or slows down together."""

from functools import cached_property
from typing import Literal

from pydantic import Field

from dials_mpi.simulators.interface import Domain, DomainSettings
from dials_mpi.simulators.platoon.dynamics import DT, GAINS, HIGHEST_ACCELERATION, HIGHEST_SPEED, TARGET_HEADWAY
from dials_mpi.simulators.platoon.global_simulator import FIRST_HEADWAYS, FIRST_SPEEDS, PlatoonGlobalSimulator
from dials_mpi.simulators.platoon.handcoded import CONTROLLERS


class PlatoonSettings(DomainSettings):
    scenario: Literal["catch-up", "slow-down"] = Field(
        "catch-up", description="the first vehicle has a gap to close, or all have to slow down behind the leader"
    )
    horizon: int = Field(600, ge=1, le=100_000, description="steps of 0.1 s per episode")
    collision_penalty: float = Field(
        300.0, ge=0, description="G: every vehicle loses it at a collision and at every step after it"
    )


class Platoon(Domain):
    """N vehicles in a row, numbered from the front, behind a scripted leader.

    An action chooses the gains of the vehicle's car-following model, headway gain α and speed gain β in 1/s: 0 none,
    1 α = 0.5, 2 β = 0.5, 3 both. Observation: speed less 15 m/s in units of 15 m/s; what the vehicle ahead is faster
    by and what the optimal velocity is higher by, in units of 5 m/s and within ±2; the headway that the next step would
    find less 20 m, in units of 20 m; acceleration in units of 2.5 m/s². Reward: -(h - 20 m)² - (v - 15 m/s)² - 0.1 u².
    When a headway falls below 1 m the vehicles have collided: the episode is over for all of them, and each loses G
    per step until the horizon.
    """

    name = "platoon"
    Settings = PlatoonSettings
    controllers = CONTROLLERS
    n_actions = len(GAINS)
    action_names = ("no_gain", "headway_gain", "speed_gain", "both_gains")
    observation_size = 5
    observation_names = ("speed", "speed_ahead", "optimal_velocity", "headway", "acceleration")
    influence = None

    def __init__(self, n_agents: int, settings: PlatoonSettings):
        super().__init__(n_agents, settings)
        if n_agents < 1:
            raise ValueError(f"{n_agents} vehicles make no platoon; it has 1 or more")
        self.horizon = settings.horizon
        self.absorbing_reward = -settings.collision_penalty
        # The sharpest braking cuts a first speed to the highest; the longest gap opens before one that stands still.
        sharpest = (HIGHEST_SPEED - FIRST_SPEEDS[1]) / DT / HIGHEST_ACCELERATION
        longest = FIRST_HEADWAYS[1] + FIRST_SPEEDS[1] * DT * (self.horizon + 1)
        self.observation_range = (sharpest, (longest - TARGET_HEADWAY) / TARGET_HEADWAY)

    @cached_property
    def graph(self):
        """A line: each vehicle is next to the one ahead and the one behind."""
        import networkx  # only methods with neighbours need it

        return networkx.path_graph(self.n_agents)

    def global_simulator(self, copies, controller=None):
        return PlatoonGlobalSimulator(
            self.n_agents, self.settings.scenario, self.settings.collision_penalty, copies, controller
        )

    def local_simulator(self, agents, copies):
        raise NotImplementedError("domain platoon has no local simulator: it declares no influence")

    def draw(self, simulator, axes, copy=0):
        from dials_mpi.simulators.platoon.render import draw  # matplotlib is optional

        return draw(simulator, axes, copy)
