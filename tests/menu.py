"""Agents in a ring who may not always do what pays best; used by the tests as `--env menu:Menu`.

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
