"""What a run will take, from a few seconds of its real work on this machine. For `--dry-run`."""

import time

import torch

from dials_mpi.algorithms.dials import LocalLearners
from dials_mpi.algorithms.evaluation import evaluate_policy
from dials_mpi.algorithms.plan import plan
from dials_mpi.config import Configuration
from dials_mpi.influence.collection import collect, dataset_batches
from dials_mpi.influence.dataset import InfluenceDataset
from dials_mpi.influence.predictor import InfluencePredictor
from dials_mpi.influence.predictor import train as train_predictor
from dials_mpi.learning.episodes import JointEpisodes, batches_of
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Rollout
from dials_mpi.learning.statistics import Means
from dials_mpi.parallel.layout import Layout
from dials_mpi.runs.clock import Clock, peak_memory
from dials_mpi.runs.progress import clock_time
from dials_mpi.simulators.interface import Domain
from dials_mpi.streams import stream, streams

_PROBED_UPDATES = 3


def estimate(configuration: Configuration, domain: Domain, layout: Layout, cores: int) -> str:
    """Layout, memory and time of a run, as text.

    The largest block's work and a collector's are timed here, one after the other, and multiplied: good to perhaps a
    third.

    Args:
        cores: cores of this machine; ranks that share one take turns.
    """
    torch.set_num_threads(1)
    c = configuration
    start_memory = peak_memory()
    segments = plan(c, domain.horizon)
    updates = segments[-1].updates.stop
    block = list(range(max(layout.counts())))
    joint = Policy(range(c.agents), domain.observation_size, domain.n_actions, c.policy, c.seed)
    turns = max(1.0, layout.n_ranks / cores)

    rows = []
    if c.mode == "gs":
        rows.append(("update on the GS, acting and learning", updates, _gs_update(c, domain, joint, block) * turns))
    else:
        policy = Policy(block, domain.observation_size, domain.n_actions, c.policy, c.seed)
        predictor = InfluencePredictor(block, domain.influence, c.predictor, c.seed)
        if c.mode == "dials":
            rounds = sum(segment.round is not None for segment in segments)
            rows += [(name, rounds, s) for name, s in _aip_round(c, domain, joint, layout, block, turns)]
        learners = LocalLearners(c, domain, block, policy, predictor, Clock())
        learners.learn(0, range(1), Means())  # warm up
        learning = _seconds(lambda: learners.learn(0, range(_PROBED_UPDATES), Means()))
        learners.close()
        rows.append((f"update of {len(block)} agents on their IALSs", updates, learning / _PROBED_UPDATES * turns))
    rows += _evaluations(c, domain, joint, layout, segments, seconds_per_update=rows[-1][2])

    total = sum(count * seconds for _, count, seconds in rows)
    lines = [
        str(layout) + (f", on {cores} cores: {turns:.1f} ranks take turns on each" if turns > 1 else ""),
        f"memory: {peak_memory():.0f} MiB for the heaviest rank, {start_memory:.0f} of it libraries",
        f"time: about {clock_time(total)} for {c.steps:,} steps per agent",
    ]
    lines += [f"  {count:6} × {seconds:9.3f} s  {name}" for name, count, seconds in rows]
    return "\n".join(lines)


def _evaluations(c, domain, joint, layout, segments, seconds_per_update: float) -> list[tuple[str, int, float]]:
    """What evaluations add to the time of a run, beside those that collections stand for."""
    batches = batches_of(c.evaluation.episodes, c.evaluation.copies)
    batch = _seconds(lambda: evaluate_policy(domain, joint, len(batches[0]), c.seed, 0))
    shared, alone = batch * len(layout.turns(len(batches))), batch * len(batches)
    beside = sum(segment.evaluates for segment in segments) - 1 + (not segments[0].collection_evaluates)
    if layout.counts()[0] or c.mode == "gs":
        return [("evaluation", beside + 1, shared)]
    segment = seconds_per_update * c.evaluation.interval / c.ppo.rollout_steps
    return [
        (f"evaluation: {alone:.3f} s beside learning, beyond it", beside, max(0.0, alone - segment)),
        ("evaluation at the end", 1, shared),
    ]


def _aip_round(c, domain, joint, layout, block, turns: float) -> list[tuple[str, float]]:
    """Seconds of collecting one dataset and of one AIP training that stops half-way."""
    batches = dataset_batches(c.dataset.steps, c.dataset.copies, domain.horizon)
    begin = time.perf_counter()
    with JointEpisodes(domain, joint, c.seed, 0) as episodes:
        batch, _ = collect(episodes, 0, batches[0])
    collection = (time.perf_counter() - begin) * len(layout.turns(len(batches)))
    mine = InfluenceDataset(**{name: array[: len(block)] for name, array in batch.arrays().items()})
    one_epoch = c.predictor.model_copy(update={"epochs": 1})
    predictor = InfluencePredictor(block, domain.influence, one_epoch, c.seed)
    permutations = stream(c.seed, "predictor/minibatches")
    epoch = _seconds(lambda: train_predictor(predictor, mine, c.dataset.test_fraction, permutations))
    training = epoch * (batches[-1].stop / len(batches[0])) * c.predictor.epochs / 2 * turns
    return [("collection of a dataset", collection), ("AIP training", training)]


def _gs_update(c, domain, joint, block) -> float:
    """Seconds of one update in mode gs: rank 0 acts for all, the owners learn."""
    actor = Actor(joint, simulator := domain.global_simulator(c.ppo.copies), c.ppo.copies, domain.horizon, Clock())
    simulator.seed(streams(c.seed, "train/simulator", range(c.ppo.copies)))
    actor.start(streams(c.seed, "train/actions", range(c.agents)))
    rollout = Rollout.empty(c.agents, c.ppo, domain.observation_size, c.policy.recurrent_size)
    acting = _seconds(lambda: actor.collect(rollout, c.ppo.sequence_length))
    simulator.close()
    mine = Rollout(**{name: torch.from_numpy(array[: len(block)]) for name, array in rollout.arrays().items()})
    learner = PPO(Policy(block, domain.observation_size, domain.n_actions, c.policy, c.seed), c.ppo, domain.horizon)
    return acting + _seconds(lambda: learner.update(mine, 0, 0.0, stream(c.seed, "train/minibatches")))


def _seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
