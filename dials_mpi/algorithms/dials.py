"""Algorithm 1: multi-agent reinforcement learning with distributed influence-augmented local simulators.

Line numbers are those of the paper's listing. The collectors run the GS; the owners of agents do all the rest, each for
its block. `untrained-dials` leaves out lines 3 to 6.
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from dials_mpi.config import Configuration
from dials_mpi.influence.augmented_simulator import InfluenceAugmentedSimulator
from dials_mpi.influence.collection import collect, dataset_batches
from dials_mpi.influence.dataset import FOLDER, InfluenceDataset, agent_file, write_round
from dials_mpi.influence.predictor import InfluencePredictor, train_by_epochs
from dials_mpi.learning.distributions import actions_of
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Rollout
from dials_mpi.learning.statistics import Means
from dials_mpi.simulators.interface import Domain
from dials_mpi.streams import stream, streams
from dials_mpi.training.plan import Segment
from dials_mpi.training.record import plain_list
from dials_mpi.training.session import Session


def train(session: Session) -> None:
    """Runs Algorithm 1 on this rank, in step with all others."""
    c, domain, clock = session.configuration, session.domain, session.clock
    with contextlib.ExitStack() as stack:
        with clock("start"):
            # Line 1.
            actions = actions_of(domain)
            policy = Policy(session.agents, domain.observation_size, actions, c.policy, c.seed, session.device)
            session.publish("policy", policy.parameters, policy.network.shapes)
            predictor = InfluencePredictor(
                session.agents, domain.influence, c.predictor, c.seed, session.device, domain.n_actions
            )
            session.checkpoints.keep("predictor", predictor.network.parameters)
            learners = None
            if session.agents:
                learners = LocalLearners(c, domain, session.agents, policy, predictor, clock, session.mean)
                stack.callback(learners.close)
                learners.keep_in(session)
        session.begin()
        for segment in session.segments():  # line 2
            if segment.round is not None:
                dataset = collect_datasets(session, segment)  # line 3
                losses = train_predictors(session, segment, predictor, dataset)  # lines 4 to 6
                save_datasets(session, segment, dataset, losses, predictor)
                log_predictors(session, segment, losses)
            for number, steps in session.units(segment):
                if learners:
                    learners.learn(number, steps, session.statistics, session.tick)  # lines 7 to 12
            session.end_segment(segment)


def collect_datasets(session: Session, segment: Segment) -> InfluenceDataset:
    """Line 3: the collectors run the joint policy on the GS; every owner receives the rows D_i of its agents.

    Turn by turn, so that no collector ever holds more than one batch of episodes of all agents. Between two the run may
    stop; what has been collected is then collected again. What the episodes returned is an evaluation, if one is due.
    """
    c, domain = session.configuration, session.domain
    session.clock.stage = "collect"
    batches = dataset_batches(c.dataset.steps, c.dataset.copies, domain.horizon)
    shape = len(session.agents), batches[-1].stop, domain.horizon
    dataset = InfluenceDataset.empty(*shape, domain.influence, domain.action_size)
    outcomes = session.evaluator.empty_outcomes(batches[-1].stop)
    with session.evaluator.joint_episodes(segment.start) as episodes:
        for members, mine in session.evaluator.turns(batches):
            seen, played = {}, None
            if mine:
                with session.clock("collect"):
                    data, played = collect(episodes, *mine)
                    seen = data.arrays()
            session.exchange.deal_columns([(seen.get(name), into) for name, into in dataset.arrays().items()], members)
            session.evaluator.gather_outcomes(played, outcomes, members)
            session.checkpoints.boundary(segment.start, always=True)
    session.evaluator.by_collection(segment, outcomes)
    return dataset


def train_predictors(
    session: Session, segment: Segment, predictor: InfluencePredictor, dataset: InfluenceDataset
) -> np.ndarray:
    """Lines 4 to 6: every owner trains its AIPs; [A, 2] float32, held-out cross-entropy before and after.

    Between two epochs the run may stop. The AIPs are then what they were before, and the round is done again.
    """
    c, network = session.configuration, predictor.network
    session.clock.stage = "aip_training"
    before = network.parameters.clone()
    epochs = None
    if session.agents:
        permutations = stream(c.seed, "predictor/minibatches", round_=segment.round)
        epochs = train_by_epochs(predictor, dataset, c.dataset.test_fraction, permutations)
    with session.clock("aip_training"):
        losses, given_up = session.checkpoints.in_step(epochs)
    if given_up:
        network.parameters.copy_(before)
        session.checkpoints.boundary(segment.start, always=True)
    return np.stack(losses, axis=1) if losses else np.zeros((0, 2), np.float32)


def save_datasets(
    session: Session, segment: Segment, dataset: InfluenceDataset, losses: np.ndarray, predictor: InfluencePredictor
) -> None:
    """Every owner adds the round to the HDF5 files of its agents; `losses` [A, 2], cross-entropy before and after."""
    c, folder = session.configuration, session.folder / FOLDER
    with session.clock("write"):
        for row, agent in enumerate(session.agents):
            before, after = losses[row]
            write_round(
                agent_file(folder, agent),
                dataset,
                row,
                segment.round,
                {
                    "domain": session.domain.name,
                    "agent": agent,
                    "n_agents": c.agents,
                    "seed": c.seed,
                    "step": segment.start,
                    "horizon": session.domain.horizon,
                    "influence_classes": session.domain.influence.classes,
                    "test_fraction": c.dataset.test_fraction,
                    "cross_entropy_before": before,
                    "cross_entropy_after": after,
                    # The size of its input; without actions that of a local state is all of it.
                    **({"n_actions": session.domain.n_actions} if c.predictor.sees_actions else {}),
                },
                predictor.network.parameters[row].cpu().numpy(),
                keep=c.dataset.keep_rounds,
            )


def log_predictors(session: Session, segment: Segment, losses: np.ndarray) -> None:
    """Rank 0 writes what AIP training came to; `losses` [A, 2] float32, as of `train_predictors`."""
    gathered = session.gather_figures(losses)
    if session.record:
        before, after = gathered.T
        session.record.write(
            segment.start,
            "aip",
            round=segment.round,
            cross_entropy_before=before.mean(),
            cross_entropy_after=after.mean(),
            per_agent={"cross_entropy_before": plain_list(before), "cross_entropy_after": plain_list(after)},
        )
        session.record.progress.say(
            f"AIP training {segment.round} at step {segment.start:,}: held-out cross-entropy "
            f"{before.mean():.3f} → {after.mean():.3f} nats"
        )


class LocalLearners:
    """Lines 7 to 12 for a block of agents: their IALSs, and PPO on them.

    Args:
        configuration, domain: of the run.
        agents: ids of the block, in the order of the rows of `policy` and `predictor`.
        policy: learned in place.
        predictor: the block's AIPs; they may be retrained between segments.
        clock: books the phases `simulate`, `act` and `ppo_update`.
        mean: as of `PPO`.
    """

    def __init__(
        self,
        configuration: Configuration,
        domain: Domain,
        agents: Sequence[int],
        policy: Policy,
        predictor: InfluencePredictor,
        clock,
        mean: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self._configuration = c = configuration
        self._agents = agents
        self._clock = clock
        local_simulator = domain.local_simulator(agents, c.ppo.copies)
        self._simulator = InfluenceAugmentedSimulator(local_simulator, predictor, c.ppo.copies)
        self._actor = Actor(policy, self._simulator, c.ppo.copies, domain, clock)
        self._learner = PPO(policy, c.ppo, domain.horizon, mean, domain.absorbing_reward)
        self._rollout = Rollout.of_domain(domain, len(agents), c.ppo, c.policy.recurrent_size, policy.device)

    def close(self) -> None:
        self._simulator.close()

    def keep_in(self, session: Session) -> None:
        """Makes the optimiser's state part of the checkpoints."""
        session.checkpoints.keep_optimiser(self._learner.optimiser)

    def learn(
        self, unit: int, steps: range, statistics: Means, tick: Callable[[int], None] = lambda step: None
    ) -> None:
        """Learns for one unit of whole episodes.

        Args:
            unit: its number, which names its random streams.
            steps: training steps per agent before each of its updates.
            statistics: `PPO_STATISTICS` by name, [A], are added for each update.
            tick: told the training steps done after each.
        """
        c = self._configuration

        def agent_streams(purpose):
            return streams(c.seed, purpose, self._agents, unit)

        with self._clock("simulate"):
            self._simulator.seed(agent_streams("train/simulator"), agent_streams("train/influence"))
            self._actor.start(agent_streams("train/actions"))
        permutations = stream(c.seed, "train/minibatches", round_=unit)
        for step in steps:  # line 8
            first_step = self._actor.elapsed
            self._actor.collect(self._rollout, c.ppo.sequence_length)  # line 9
            with self._clock("ppo_update"):  # line 10
                statistics.add(self._learner.update(self._rollout, first_step, c.ppo.annealed(step), permutations))
            tick(step + c.ppo.rollout_steps)
