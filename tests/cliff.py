"""Agents beside a cliff: to walk on costs `care` per step, to leap costs nothing, and `penalty` at every step from then
on, when the agent's episode is over. Used by the tests as `--env cliff:Cliff`.

With discount γ walking on for ever is worth -care / (1 - γ), and leaping -γ penalty / (1 - γ): it is right to leap
where γ penalty < care, and nowhere else. The influence sources, the neighbours' leaps, have no effect.
"""

import numpy as np

from dials_mpi.simulators.interface import Domain, DomainSettings, GlobalSimulator, Influence, LocalSimulator, Step


class CliffSettings(DomainSettings):
    care: float = 1.0
    penalty: float = 2.0


class _Cliff:
    """[K, B] agents; they see whether they go on, and whether it is over."""

    def __init__(self, n_agents: int, copies: int, settings: CliffSettings):
        self._shape = (n_agents, copies)
        self._settings = settings

    def seed(self, generators):
        pass

    def reset(self):
        self._over = np.zeros(self._shape, bool)
        return self.local_states()

    def local_states(self):
        return np.stack([~self._over, self._over], axis=-1).astype(np.uint8)

    def _step(self, actions):
        paid = np.where(self._over, -self._settings.penalty, np.where(actions == 1, 0.0, -self._settings.care))
        self._over |= actions == 1
        return Step(self.local_states(), paid.astype(np.float32), self._over.copy())


class CliffGlobalSimulator(_Cliff, GlobalSimulator):
    controller = None

    def step(self, actions):
        actions = np.full(self._shape, int(self.controller == "leap")) if actions is None else np.asarray(actions)
        leaps = ((actions == 1) & ~self._over).astype(np.uint8)
        self._sources = np.stack([np.roll(leaps, 1, axis=0), np.roll(leaps, -1, axis=0)], axis=-1)
        return self._step(actions)

    def influence_sources(self):
        return self._sources


class CliffLocalSimulator(_Cliff, LocalSimulator):
    def step(self, actions, influence_sources):
        return self._step(actions)


class Cliff(Domain):
    name = "cliff"
    Settings = CliffSettings
    controllers = ("walk", "leap")
    n_actions = 2
    observation_size = 2
    horizon = 10
    influence = Influence(sources=2, classes=2, local_state_size=2)

    def __init__(self, n_agents, settings):
        super().__init__(n_agents, settings)
        self.absorbing_reward = -settings.penalty

    def global_simulator(self, copies, controller=None):
        simulator = CliffGlobalSimulator(self.n_agents, copies, self.settings)
        simulator.controller = controller
        return simulator

    def local_simulator(self, agents, copies):
        return CliffLocalSimulator(len(agents), copies, self.settings)
