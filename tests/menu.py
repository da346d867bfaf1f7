"""Agents in a ring who may not always do what pays best; used by the tests as `--env menu:Menu` and `menu:Mixed`.

As in `ring`, but with a third action: it pays `DELICACY`, and is there only for an agent whose bit is 1. A simulator
fails if somebody takes what is not available.
"""

import numpy as np
from ring import Ring, RingGlobalSimulator, RingLocalSimulator

from dials_mpi.simulators.interface import Step

DELICACY = 3.0


class _Menu:
    def available_actions(self):
        available = np.ones((*self._shape, 3), bool)
        available[..., 2] = self._bits == 1
        return available

    def _step(self, actions, sources):
        assert np.take_along_axis(self.available_actions(), np.asarray(actions)[..., None], -1).all(), "not available"
        rewards = np.where(actions == 2, DELICACY, actions == self._bits).astype(np.float32)
        self._bits = sources.astype(np.uint8)
        return Step(self.local_states(), rewards)


class MenuGlobalSimulator(_Menu, RingGlobalSimulator):
    def step(self, actions):
        self._draws = None
        actions = self._bits if actions is None else actions
        chosen = (actions > 0).astype(np.uint8)
        self._sources = np.stack([np.roll(chosen, 1, axis=0), np.roll(chosen, -1, axis=0)], axis=-1)
        return self._step(actions, self._sources[..., 0])


class MenuLocalSimulator(_Menu, RingLocalSimulator):
    pass


class Menu(Ring):
    name = "menu"
    n_actions = 3
    masks_actions = True

    def global_simulator(self, copies, controller=None):
        return MenuGlobalSimulator(self.n_agents, copies)

    def local_simulator(self, agents, copies):
        return MenuLocalSimulator(len(agents), copies)

    def draw(self, simulator, axes, copy=0):
        return axes.imshow(simulator._bits[None, :, copy], vmin=0, vmax=1), "bit"


class _Mixed:
    """Every other agent sees a third thing, what its bit is not, and only these may take the delicacy."""

    def available_actions(self):
        available = super().available_actions()
        available[..., 2] &= self.gourmets[:, None]
        return available

    def reset(self):
        return self._padded(super().reset())

    def step(self, *arguments):
        step = super().step(*arguments)
        return Step(self._padded(step.observations), step.rewards)

    def _padded(self, observations):
        more = (observations[..., 1] * self.gourmets[:, None])[..., None]
        return np.concatenate([observations, more], axis=-1)


class MixedGlobalSimulator(_Mixed, MenuGlobalSimulator):
    pass


class MixedLocalSimulator(_Mixed, MenuLocalSimulator):
    pass


class Mixed(Menu):
    """Agents of two kinds: 0, who lack a part of the observation and an action, and 1."""

    name = "mixed"
    observation_size = 3

    def __init__(self, n_agents, settings):
        super().__init__(n_agents, settings)
        self.kinds = [agent % 2 for agent in range(n_agents)]

    def global_simulator(self, copies, controller=None):
        return self._made(MixedGlobalSimulator(self.n_agents, copies), range(self.n_agents))

    def local_simulator(self, agents, copies):
        return self._made(MixedLocalSimulator(len(agents), copies), agents)

    def _made(self, simulator, agents):
        simulator.gourmets = np.array([self.kinds[agent] == 1 for agent in agents])
        return simulator
