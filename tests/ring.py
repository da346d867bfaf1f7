"""A domain of a user's own, as small as one can be: N agents in a ring, each told by its left neighbour.

Agent i holds one bit, the influence source of the last step: whether its left neighbour chose action 1. It is paid 1
for choosing the action that equals its own bit. A second source, the right neighbour's choice, has no effect. There is
no other randomness than the first bits, which a replay hands over. Used by the tests as `--env ring:Ring`, through the
extension point that users have.
"""

import subprocess
import time
from typing import Literal

import numpy as np

from dials_mpi.parallel.launcher import launched_rank
from dials_mpi.simulators.interface import Domain, DomainSettings, GlobalSimulator, Influence, LocalSimulator, Step


class _Bits:
    """[K, B] bits and what agents see of them: the bit and its complement."""

    def __init__(self, n_agents: int, copies: int):
        self._shape = (n_agents, copies)

    def local_states(self):
        return np.stack([self._bits, 1 - self._bits], axis=-1).astype(np.uint8)

    def _step(self, actions, sources) -> Step:
        rewards = (actions == self._bits).astype(np.float32)
        self._bits = sources.astype(np.uint8)
        return Step(self.local_states(), rewards)


class RingGlobalSimulator(_Bits, GlobalSimulator):
    def seed(self, generators):
        self._generators = generators

    def reset(self):
        draws = [generator.integers(2, size=self._shape[0]) for generator in self._generators]
        self._bits = self._draws = np.stack(draws, axis=1).astype(np.uint8)
        return self.local_states()

    def draws(self):
        return self._draws

    def step(self, actions):
        self._draws = None
        if actions is None:
            actions = self._bits
        neighbours = [np.roll(actions, 1, axis=0), np.roll(actions, -1, axis=0)]
        self._sources = np.stack(neighbours, axis=-1).astype(np.uint8)
        return self._step(actions, self._sources[..., 0])

    def influence_sources(self):
        return self._sources


class RingLocalSimulator(_Bits, LocalSimulator):
    _given = None

    def seed(self, generators):
        self._generators = generators

    def take_draws(self, draws):
        self._given = draws

    def reset(self):
        draws, self._given = self._given, None
        if draws is None:
            draws = np.stack([generator.integers(2, size=self._shape[1]) for generator in self._generators])
        self._bits = draws.astype(np.uint8)
        return self.local_states()

    def step(self, actions, influence_sources):
        return self._step(actions, influence_sources[..., 0])


class Ring(Domain):
    name = "ring"
    controllers = ("copy",)
    n_actions = 2
    observation_size = 2
    horizon = 10
    influence = Influence(sources=2, classes=2, local_state_size=2)

    def global_simulator(self, copies, controller=None):
        return RingGlobalSimulator(self.n_agents, copies)

    def local_simulator(self, agents, copies):
        return RingLocalSimulator(len(agents), copies)


class _Prices:
    """Pays agent i with i + 1 instead of 1."""

    def step(self, *arguments):
        step = super().step(*arguments)
        return Step(step.observations, step.rewards * self.prices)


class UnequalGlobalSimulator(_Prices, RingGlobalSimulator):
    pass


class UnequalLocalSimulator(_Prices, RingLocalSimulator):
    pass


class Unequal(Ring):
    """Places that are worth more than others; nobody earns more at his own than the controller."""

    def global_simulator(self, copies, controller=None):
        simulator = UnequalGlobalSimulator(self.n_agents, copies)
        simulator.prices = np.arange(1, self.n_agents + 1, dtype=np.float32)[:, None]
        return simulator

    def local_simulator(self, agents, copies):
        simulator = UnequalLocalSimulator(len(agents), copies)
        simulator.prices = np.array(agents, np.float32)[:, None] + 1
        return simulator


class Uninfluenced(Ring):
    """Without influence sources: good for mode gs alone."""

    influence = None


class Incomplete(Domain):
    """Lacks `local_simulator`."""

    name = "incomplete"

    def global_simulator(self, copies, controller=None):
        raise AssertionError("never called")


class FailingLocalSimulator(RingLocalSimulator):
    """Works for a while: long enough to pass the checks at the start."""

    steps = 0

    def step(self, actions, influence_sources):
        self.steps += 1
        if self.steps > 40:
            raise RuntimeError("the conveyor belt is stuck")
        return super().step(actions, influence_sources)


class Failing(Ring):
    """Raises in the local simulator of the last agent, so on the rank that owns it."""

    def local_simulator(self, agents, copies):
        failing = self.n_agents - 1 in agents
        return (FailingLocalSimulator if failing else RingLocalSimulator)(len(agents), copies)


class _Naps:
    """Sleeps for a second at every fortieth step: never while the checks at the start run."""

    steps = 0

    def step(self, *arguments):
        self.steps += 1
        if self.steps % 40 == 0:
            time.sleep(1)
        return super().step(*arguments)


class SlowGlobalSimulator(_Naps, RingGlobalSimulator):
    pass


class SlowLocalSimulator(_Naps, RingLocalSimulator):
    pass


class Slow(Ring):
    """The owners wait for rank 0 and rank 0 for the owners, whose CPUs have next to nothing to do."""

    def global_simulator(self, copies, controller=None):
        return SlowGlobalSimulator(self.n_agents, copies)

    def local_simulator(self, agents, copies):
        return SlowLocalSimulator(len(agents), copies)


class FailsOnOneRank(Ring):
    """As when a node lacks a file that the others have: what looks like bad input, but on one rank alone."""

    def __init__(self, n_agents, settings):
        super().__init__(n_agents, settings)
        if launched_rank() == 1:
            raise ValueError("this node has no map of the ring")


class ExitsOnOneRank(Ring):
    def __init__(self, n_agents, settings):
        super().__init__(n_agents, settings)
        if launched_rank() == 1:
            raise SystemExit(3)


class Forgetful(Ring):
    """Breaks a promise: its local simulator draws from no stream."""

    def local_simulator(self, agents, copies):
        simulator = RingLocalSimulator(len(agents), copies)
        simulator.seed = lambda generators: RingLocalSimulator.seed(
            simulator, [np.random.default_rng() for _ in generators]
        )
        return simulator


class _Breaks:
    """A bad value at one step of each episode, of agent 2 in copy 10; the checks at the start play fewer copies."""

    def breaks(self, row: int, settings: "BreaksSettings"):
        self._row, self._settings = row, settings
        return self

    def reset(self):
        self._t = -1
        return self._spoilt(super().reset(), None)[0]

    def step(self, *arguments):
        self._t += 1
        step = super().step(*arguments)
        return Step(*self._spoilt(step.observations, step.rewards))

    def _spoilt(self, observations, rewards):
        arrays = {"observation": observations.astype(np.float32), "reward": rewards}
        if self._t == self._settings.step and self._shape[1] > 10 and self._row in range(self._shape[0]):
            arrays[self._settings.what][self._row, 10] = self._settings.value
        return arrays["observation"], arrays["reward"]


class BreakingGlobalSimulator(_Breaks, RingGlobalSimulator):
    pass


class BreakingLocalSimulator(_Breaks, RingLocalSimulator):
    pass


class BreaksSettings(DomainSettings):
    simulator: Literal["global", "local"] = "local"
    what: Literal["observation", "reward"] = "reward"
    value: Literal["nan", "inf"] = "nan"
    step: int = 7


class Breaks(Ring):
    Settings = BreaksSettings

    def global_simulator(self, copies, controller=None):
        row = 2 if self.settings.simulator == "global" else -1
        return BreakingGlobalSimulator(self.n_agents, copies).breaks(row, self.settings)

    def local_simulator(self, agents, copies):
        row = list(agents).index(2) if self.settings.simulator == "local" and 2 in agents else -1
        return BreakingLocalSimulator(len(agents), copies).breaks(row, self.settings)


class Endless(Ring):
    """With more than four agents its global simulator waits for a program of its own that never ends."""

    def global_simulator(self, copies, controller=None):
        if self.n_agents > 4:
            subprocess.run(["sleep", "86400.25"], check=True)
        return super().global_simulator(copies, controller)


class OnlyTwenty(Ring):
    def __init__(self, n_agents, settings):
        super().__init__(n_agents, settings)
        if n_agents != 20:
            raise ValueError("this ring has 20 agents")
