"""A method of its own in a file of its own: every agent plays what has paid best so far, as if nobody else were there.

What a method needs is here: its settings, `train`, how it acts, and an entry in the registry.
"""

import numpy as np
import torch
from pydantic import Field

from dials_mpi.algorithms.registry import Method
from dials_mpi.settings import Settings


class BanditSettings(Settings):
    episodes: int = Field(4, ge=1, description="of all agents together in a round")
    exploration: float = Field(0.2, ge=0, le=1, description="share of random actions")


METHOD = Method(
    name="Bandit",
    summary="every agent plays what has paid best so far",
    module="bandit",
    actor="bandit:Greedy",
    family="bandit",
    sections={"bandit": BanditSettings},
    statistics=("best_value",),
    experience=lambda c, horizon: (horizon, c.bandit.episodes),
)


def train(session):
    n_actions, episodes = session.domain.n_actions, range(session.configuration.bandit.episodes)
    rows = torch.zeros(len(session.agents), 2 * n_actions)
    session.publish("payments", rows, {"sums": (1, n_actions), "counts": (1, n_actions)})
    session.begin()
    for segment in session.segments():
        for _, steps in session.units(segment):
            session.gather()
            paid = np.empty((len(session.agents), 1, 2 * n_actions), np.float32)
            with session.evaluator.joint_episodes(steps.start) as joint:
                for members, mine in session.evaluator.turns([episodes]):
                    seen = Payments(session.domain.n_agents, n_actions)
                    if mine:
                        joint.play(*mine, seen.watching)
                    sent = seen.rows[:, None] if mine else None
                    session.exchange.deal_columns([(sent, paid)], dict.fromkeys(members, range(1)))
            rows += torch.from_numpy(paid[:, 0])
            session.statistics.add({"best_value": values(rows).amax(dim=1)})
        session.end_segment(segment)


class Payments:
    """A GS that adds up what actions pay: rows [N, 2 · actions], sums and counts."""

    def __init__(self, n_agents, n_actions):
        self.rows = np.zeros((n_agents, 2 * n_actions), np.float32)

    def watching(self, simulator):
        self.reset, self._simulator = simulator.reset, simulator
        return self

    def step(self, actions):
        step = self._simulator.step(actions)
        for row, (chosen, rewards) in enumerate(zip(actions, step.rewards, strict=True)):
            np.add.at(self.rows[row], chosen, rewards)
            np.add.at(self.rows[row], chosen + self.rows.shape[1] // 2, 1)
        return step


def values(rows):
    sums, counts = rows.chunk(2, dim=1)
    return sums / counts.clamp(min=1)


class Greedy:
    def __init__(self, configuration, domain, rows):
        self._best = values(torch.from_numpy(rows["payments"])).numpy().argmax(axis=1)
        self._n_actions, self._exploration = domain.n_actions, configuration.bandit.exploration

    def start(self, copies, generators):
        self._copies, self._generators = copies, generators

    def act(self, observations, available=None):
        explores = np.stack([g.random(self._copies) < self._exploration for g in self._generators])
        anything = np.stack([g.integers(self._n_actions, size=self._copies) for g in self._generators])
        return np.where(explores, anything, self._best[:, None])
