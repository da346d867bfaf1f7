"""Agents in a ring who aim: two numbers from -1 to 1 are an action. Used by the tests as `--env aim:Aim`.

Agent i holds one bit, whether the first number of its left neighbour's last action was positive. It aims best with
`target(bit)`, and is paid 1 less the squared distance from there. A simulator fails if it is given anything but float32
numbers in the range.
"""

import numpy as np
from ring import Ring, RingGlobalSimulator, RingLocalSimulator

from dials_mpi.simulators.interface import Step


def target(bits):
    """[..., 2] float32."""
    return np.stack([np.where(bits == 1, 0.5, -0.5), np.full(bits.shape, 0.25)], axis=-1).astype(np.float32)


class _Aims:
    def _step(self, actions, sources):
        assert (actions.shape, actions.dtype) == ((*self._shape, 2), np.float32)
        assert (abs(actions) <= 1).all()
        rewards = 1 - ((actions - target(self._bits)) ** 2).sum(axis=-1)
        self._bits = sources.astype(np.uint8)
        return Step(self.local_states(), rewards.astype(np.float32))


class AimGlobalSimulator(_Aims, RingGlobalSimulator):
    def step(self, actions):
        self._draws = None
        actions = target(self._bits) if actions is None else actions
        chosen = (actions[..., 0] > 0).astype(np.uint8)
        self._sources = np.stack([np.roll(chosen, 1, axis=0), np.roll(chosen, -1, axis=0)], axis=-1)
        return self._step(actions, self._sources[..., 0])


class AimLocalSimulator(_Aims, RingLocalSimulator):
    pass


class Aim(Ring):
    name = "aim"
    n_actions = 0
    action_size = 2
    observation_range = (0.0, 1.0)

    def global_simulator(self, copies, controller=None):
        return AimGlobalSimulator(self.n_agents, copies)

    def local_simulator(self, agents, copies):
        return AimLocalSimulator(len(agents), copies)
