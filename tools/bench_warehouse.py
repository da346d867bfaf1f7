#!/usr/bin/env python3
"""Speed of the warehouse on one core: simulators, IALS, IALS + PPO, the GS with a joint policy, AIP training.

Every figure is the median over repeats in one run on one thread. It is printed as steps per second, as a ratio to the
same work with one copy of one agent at a time (the way the published code works), and beside the published code's own
figure, measured on a machine of this kind.

    python tools/bench_warehouse.py
    python tools/bench_warehouse.py --agents 1 4 25 --seconds 0.5
"""

import argparse
import os
import statistics
import time

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from dials_mpi.algorithms.dials import LocalLearners  # noqa: E402
from dials_mpi.config import Configuration, resolve  # noqa: E402
from dials_mpi.influence.augmented_simulator import InfluenceAugmentedSimulator  # noqa: E402
from dials_mpi.influence.collection import collect  # noqa: E402
from dials_mpi.influence.predictor import InfluencePredictor, train  # noqa: E402
from dials_mpi.learning.episodes import JointEpisodes  # noqa: E402
from dials_mpi.learning.policy import Policy  # noqa: E402
from dials_mpi.learning.rollout import Player  # noqa: E402
from dials_mpi.learning.statistics import Means  # noqa: E402
from dials_mpi.runs.clock import Clock, peak_memory  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.streams import stream, streams  # noqa: E402

PUBLISHED = {
    "local simulator": 13_390,
    "IALS + PPO": 1_122,
    "GS, 4 agents": 841,
    "GS, 25 agents": 117,
    "GS, 100 agents": 15,
    "GS + joint policy, 4 agents": 364,
    "GS + joint policy, 25 agents": 61,
    "GS + joint policy, 100 agents": 11,
    "AIP training, 10,000 samples, 10 epochs": 100_000 / 0.47,
}
"""Steps per second of the published code on one core; for AIP training, samples times epochs per second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 4, 25], help="sizes of a rank's block (1 4 25)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time per repeat (0.5)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats per figure (5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.seconds, arguments.repeats)

    c = configuration()
    single = configuration("ppo.copies=1", "ppo.minibatch_size=50")
    print(f"medians of {arguments.repeats} repeats on one core, one thread; {c.ppo.copies} copies per agent\n")
    print(f"{'agent-steps per second':44}{'here':>12}{'× one copy':>12}{'published':>12}{'×':>8}")
    for name, work in (("local simulator", local_simulator), ("IALS", ials), ("IALS + PPO", ials_ppo)):
        reference = bench.rate(*work(single, 1))
        bench.show(f"{name}, 1 agent, 1 copy", reference, reference, PUBLISHED.get(name))
        for agents in arguments.agents:
            rate = bench.rate(*work(c, agents))
            bench.show(f"{name}, {agents} agents, {c.ppo.copies} copies", rate, reference, PUBLISHED.get(name))

    print(f"\n{'joint steps per second':44}{'here':>12}{'× one copy':>12}{'published':>12}{'×':>8}")
    for name, work in (("GS", global_simulator), ("GS + joint policy", joint_policy)):
        for agents in (4, 25, 100):
            label = f"{name}, {agents} agents"
            reference = bench.rate(*work(c, agents, 1))
            bench.show(f"{label}, {c.dataset.copies} copies", bench.rate(*work(c, agents, c.dataset.copies)), reference,
                       PUBLISHED[label])  # fmt: skip

    print(f"\n{'samples × epochs per second':44}{'here':>12}{'× 1 agent':>12}{'published':>12}{'×':>8}")
    reference = None
    for agents in arguments.agents:
        rate = bench.rate(*aip_training(c, agents))
        reference = reference or rate
        bench.show(f"AIP training, {agents} agents stacked", rate, reference,
                   PUBLISHED["AIP training, 10,000 samples, 10 epochs"])  # fmt: skip
    print(f"\npeak memory {peak_memory():.0f} MiB")


class Bench:
    """Times work: a callable and how many steps one call of it takes."""

    def __init__(self, seconds: float, repeats: int):
        self._seconds = seconds
        self._repeats = repeats

    def rate(self, work, steps: int) -> float:
        """Median steps per second."""
        work()
        rates = []
        for _ in range(self._repeats):
            calls, begin = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < self._seconds or not calls:
                work()
                calls += 1
            rates.append(calls * steps / elapsed)
        return statistics.median(rates)

    @staticmethod
    def show(label: str, rate: float, reference: float, published: float | None) -> None:
        beside = f"{published:12,.0f}{rate / published:8.1f}" if published else ""
        print(f"{label:44}{rate:12,.0f}{rate / reference:12.1f}{beside}", flush=True)


def configuration(*overrides: str) -> Configuration:
    from dials_mpi.config import parse_override

    layers = [("bench", {"env": "warehouse"}), *((text, parse_override(text)) for text in overrides)]
    return resolve(layers, default_agents=25)


def domain_of(c: Configuration, agents: int):
    return make_domain("warehouse", agents, c.domain)


def local_simulator(c: Configuration, agents: int):
    copies = c.ppo.copies
    simulator = domain_of(c, 25).local_simulator(range(agents), copies)
    simulator.seed(streams(0, "train/simulator", range(agents)))
    generator = np.random.default_rng(0)
    actions = generator.integers(4, size=(agents, copies))
    sources = generator.integers(4, size=(agents, copies, 4)).astype(np.uint8)
    return episode(simulator, lambda: simulator.step(actions, sources), c), c.domain.horizon * agents * copies


def ials(c: Configuration, agents: int):
    domain, copies = domain_of(c, 25), c.ppo.copies
    predictor = InfluencePredictor(range(agents), domain.influence, c.predictor, 0)
    simulator = InfluenceAugmentedSimulator(domain.local_simulator(range(agents), copies), predictor, copies)
    simulator.seed(streams(0, "train/simulator", range(agents)), streams(0, "train/influence", range(agents)))
    actions = np.random.default_rng(0).integers(4, size=(agents, copies))
    return episode(simulator, lambda: simulator.step(actions), c), c.domain.horizon * agents * copies


def ials_ppo(c: Configuration, agents: int):
    domain = domain_of(c, 25)
    policy = Policy(range(agents), domain.observation_size, domain.n_actions, c.policy, 0)
    predictor = InfluencePredictor(range(agents), domain.influence, c.predictor, 0)
    learners = LocalLearners(c, domain, range(agents), policy, predictor, Clock())
    return lambda: learners.learn(0, range(2), Means()), 2 * c.ppo.rollout_steps * agents


def global_simulator(c: Configuration, agents: int, copies: int):
    simulator = domain_of(c, agents).global_simulator(copies)
    simulator.seed(streams(0, "evaluate/simulator", range(copies)))
    actions = np.random.default_rng(0).integers(4, size=(agents, copies))
    return episode(simulator, lambda: simulator.step(actions), c), c.domain.horizon * copies


def joint_policy(c: Configuration, agents: int, copies: int):
    domain = domain_of(c, agents)
    policy = Policy(range(agents), domain.observation_size, domain.n_actions, c.policy, 0)
    player = Player(policy, copies, streams(0, "evaluate/actions", range(agents)))
    simulator = domain.global_simulator(copies)
    simulator.seed(streams(0, "evaluate/simulator", range(copies)))

    def work():
        observations = simulator.reset()
        player.reset()
        for _ in range(domain.horizon):
            observations = simulator.step(player.act(observations)).observations

    return work, domain.horizon * copies


def aip_training(c: Configuration, agents: int):
    domain = domain_of(c, 25)
    policy = Policy(range(25), domain.observation_size, domain.n_actions, c.policy, 0)
    data, _ = collect(JointEpisodes(domain, policy, 0, 0), 0, range(c.dataset.steps // domain.horizon))
    mine = type(data)(**{name: array[:agents] for name, array in data.arrays().items()})
    one_epoch = c.predictor.model_copy(update={"epochs": 1})

    def work():
        predictor = InfluencePredictor(range(agents), domain.influence, one_epoch, 0)
        train(predictor, mine, c.dataset.test_fraction, stream(0, "predictor/minibatches"))

    return work, c.dataset.steps * agents


def episode(simulator, step, c: Configuration):
    def whole():
        simulator.reset()
        for _ in range(c.domain.horizon):
            step()

    return whole


if __name__ == "__main__":
    main()
