"""Collecting the datasets D_i from the GS (Algorithm 1, line 3), in batches of episodes."""

from collections.abc import Iterator

import numpy as np

from dials_mpi.influence.dataset import InfluenceDataset
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.rollout import Player
from dials_mpi.simulators.interface import Domain
from dials_mpi.streams import streams


def episodes_and_batches(steps: int, copies: int, horizon: int) -> tuple[int, list[int]]:
    """Episodes that make up `steps` joint steps, and how many of them each batch of at most `copies` brings."""
    episodes = -(-steps // horizon)
    full, rest = divmod(episodes, copies)
    return episodes, [copies] * full + ([rest] if rest else [])


def collect(
    domain: Domain, policy: Policy, steps: int, copies: int, seed: int, round_: int
) -> Iterator[InfluenceDataset]:
    """Runs the joint policy on the GS and yields what it saw, a batch of episodes at a time.

    Every copy has its own stream for the simulator and every agent its own for its actions, so the data depend on the
    seed, the round and the number of copies alone.

    Args:
        policy: of all N agents.
        steps: joint steps in all, rounded up to whole episodes.
        copies: episodes side by side.
    """
    _, batches = episodes_and_batches(steps, copies, domain.horizon)
    copies = batches[0]
    simulator_streams = streams(seed, "collect/simulator", range(copies), round_)
    player = Player(policy, copies, streams(seed, "collect/actions", range(domain.n_agents), round_))
    with domain.global_simulator(copies) as simulator:
        simulator.seed(simulator_streams)
        for wanted in batches:
            batch = InfluenceDataset.empty(domain.n_agents, copies, domain.horizon, domain.influence)
            observations = simulator.reset()
            player.reset()
            for t in range(domain.horizon):
                batch.history[:, :, t] = simulator.local_states()
                actions = player.act(observations)
                batch.actions[:, :, t] = actions
                observations, _ = simulator.step(actions)
                batch.influence_sources[:, :, t] = simulator.influence_sources()
            yield InfluenceDataset(**{name: np.ascontiguousarray(a[:, :wanted]) for name, a in batch.arrays().items()})
