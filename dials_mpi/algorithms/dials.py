"""Algorithm 1: multi-agent reinforcement learning with distributed influence-augmented local simulators.

Line numbers are those of the paper's listing. Rank 0 runs the GS; the owners of agents do all the rest, each for its
block. `untrained-dials` leaves out lines 3 to 6.
"""

import numpy as np

from dials_mpi.algorithms.session import Segment, Session
from dials_mpi.influence.augmented_simulator import InfluenceAugmentedSimulator
from dials_mpi.influence.collection import collect, episodes_and_batches
from dials_mpi.influence.dataset import InfluenceDataset, write_round
from dials_mpi.influence.predictor import InfluencePredictor
from dials_mpi.influence.predictor import train as train_predictor
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Rollout
from dials_mpi.learning.statistics import Means
from dials_mpi.streams import stream, streams


def train(session: Session) -> None:
    """Runs Algorithm 1 on this rank, in step with all others."""
    c, domain, clock = session.configuration, session.domain, session.clock
    predictor = InfluencePredictor(session.agents, domain.influence, c.predictor, c.seed)  # line 1, with session.policy
    learners = LocalLearners(session, predictor) if session.agents else None

    session.evaluate_references()
    session.gather_policies()
    session.evaluate(0)
    for segment in session.segments():  # line 2
        if segment.round is not None and c.mode == "dials":
            dataset = collect_datasets(session, segment.round)  # line 3
            with clock("aip_training"):  # lines 4 to 6
                permutations = stream(c.seed, "predictor/minibatches", round_=segment.round)
                losses = np.zeros((0, 2), np.float32)
                if session.agents:
                    before_after = train_predictor(predictor, dataset, c.dataset.test_fraction, permutations)
                    losses = np.stack(before_after, axis=1)
            save_datasets(session, segment, dataset, losses)
            session.log_predictors(segment.round, segment.updates.start, losses)
        statistics = learners.learn(segment) if learners else None  # lines 7 to 12
        session.end_segment(segment, statistics)


def collect_datasets(session: Session, round_: int) -> InfluenceDataset:
    """Line 3: rank 0 runs the joint policy on the GS; every owner receives the rows D_i of its agents.

    Batch by batch, so that rank 0 never holds more than one batch of episodes.
    """
    c, domain = session.configuration, session.domain
    episodes, batches = episodes_and_batches(c.dataset.steps, c.dataset.copies, domain.horizon)
    dataset = InfluenceDataset.empty(len(session.agents), episodes, domain.horizon, domain.influence)
    batches_of_all = (
        collect(domain, session.joint_policy, c.dataset.steps, c.dataset.copies, c.seed, round_)
        if session.joint_policy
        else iter(())
    )
    first = 0
    for size in batches:
        with session.clock("collect"):
            batch = next(batches_of_all, None)
        part = InfluenceDataset.empty(len(session.agents), size, domain.horizon, domain.influence)
        for name, mine in part.arrays().items():
            session.exchange.scatter_rows(batch.arrays()[name] if batch else None, mine)
            dataset.arrays()[name][:, first : first + size] = mine
        first += size
    return dataset


def save_datasets(session: Session, segment: Segment, dataset: InfluenceDataset, losses: np.ndarray) -> None:
    """Every owner adds the round to the HDF5 files of its agents; `losses` [A, 2], cross-entropy before and after."""
    c = session.configuration
    with session.clock("write"):
        for row, agent in enumerate(session.agents):
            before, after = losses[row]
            write_round(
                session.influence_folder / f"agent_{agent:04d}.h5",
                dataset,
                row,
                segment.round,
                {
                    "domain": session.domain.name,
                    "agent": agent,
                    "n_agents": c.agents,
                    "seed": c.seed,
                    "step": session.steps_after(segment.updates.start),
                    "horizon": session.domain.horizon,
                    "influence_classes": session.domain.influence.classes,
                    "test_fraction": c.dataset.test_fraction,
                    "cross_entropy_before": before,
                    "cross_entropy_after": after,
                },
                keep=c.dataset.keep_rounds,
            )


class LocalLearners:
    """Lines 7 to 12 for the agents of one rank: their IALSs, and PPO on them.

    Args:
        session: of a rank that owns agents.
        predictor: their AIPs.
    """

    def __init__(self, session: Session, predictor: InfluencePredictor):
        c, domain = session.configuration, session.domain
        self._session = session
        self._simulator = InfluenceAugmentedSimulator(
            domain.local_simulator(session.agents, c.ppo.copies), predictor, c.ppo.copies
        )
        self._actor = Actor(session.policy, self._simulator, c.ppo.copies, domain.horizon, session.clock)
        self._learner = PPO(session.policy, c.ppo, domain.horizon)
        self._rollout = Rollout.empty(len(session.agents), c.ppo, domain.observation_size, c.policy.recurrent_size)

    def learn(self, segment: Segment) -> dict:
        """F steps, or as many as the segment has; returns `STATISTICS` [A] averaged over its updates."""
        session, c = self._session, self._session.configuration

        def agent_streams(purpose):
            return streams(c.seed, purpose, session.agents, segment.index)

        with session.clock("simulate"):
            self._simulator.seed(agent_streams("train/simulator"), agent_streams("train/influence"))
            self._actor.start(agent_streams("train/actions"))
        permutations = stream(c.seed, "train/minibatches", round_=segment.index)
        means = Means()
        for update in segment.updates:  # line 8
            first_step = self._actor.elapsed
            self._actor.collect(self._rollout, c.ppo.sequence_length)  # line 9
            with session.clock("ppo_update"):
                means.add(self._learner.update(self._rollout, first_step, session.annealed(update), permutations))  # 10
            session.tick(update + 1)
        return means.result()
