#!/usr/bin/env python3
"""Speed of traffic on one core: tiles over both backends, IALS + PPO, the GS with a joint policy.

Every figure is the median over repeats in one run on one thread, with ratios to the first row of its table and, beside
it, what the published code reached on a machine of this kind.

    python tools/bench_traffic.py
    python tools/bench_traffic.py --tiles 8 64 --lights 4 100 --seconds 1
"""

import argparse
import os
import statistics
import sys
import time

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from dials_mpi.algorithms.dials import LocalLearners  # noqa: E402
from dials_mpi.cli import at_least  # noqa: E402
from dials_mpi.config import resolve  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.influence.predictor import InfluencePredictor  # noqa: E402
from dials_mpi.learning.policy import Policy  # noqa: E402
from dials_mpi.learning.rollout import Player  # noqa: E402
from dials_mpi.learning.statistics import Means  # noqa: E402
from dials_mpi.runs.clock import PHASES, Clock  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.streams import streams  # noqa: E402

PUBLISHED_TILE, PUBLISHED_IALS_PPO, PUBLISHED_GS = 4743, 1016, 1532
INFLOW, SWITCHES = 0.1, 0.08
"""About what a trained light sees and does."""
WARM_UP = 60
"""Seconds until the roads are as full as they stay."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=at_least(1), nargs="+", default=[1, 8, 64, 200], help="tiles (1 8 64 200)")
    parser.add_argument("--agents", type=at_least(1), nargs="+", default=[1, 4, 25], help="agents on a rank (1 4 25)")
    parser.add_argument(
        "--lights", type=at_least(1), nargs="+", default=[4, 25, 49, 100], help="of the GS (4 25 49 100)"
    )
    parser.add_argument("--copies", type=at_least(1), default=5, help="of the GS (5)")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="(5)")
    parser.add_argument("--seconds", type=_positive_seconds, default=0.5, help="per repeat (0.5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        tiles(arguments)
        learners(arguments)
        global_simulators(arguments)
    except UserError as error:
        print(f"bench_traffic: {error}", file=sys.stderr)
        return 2
    return 0


def _positive_seconds(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return float(text)


def domain_of(agents: int, **settings):
    c = resolve([("bench", {"env": "traffic", "agents": agents, "domain": settings})], agents)
    return c, make_domain(c.env, c.agents, c.domain)


def median_rate(work, steps_per_call: int, arguments) -> float:
    """Steps per second, median over repeats."""
    rates = []
    for _ in range(arguments.repeats):
        calls, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < arguments.seconds:
            work()
            calls += 1
        rates.append(calls * steps_per_call / elapsed)
    return statistics.median(rates)


def tiles(arguments) -> None:
    print(f"local simulator (published: {PUBLISHED_TILE:,} tile-steps/s)")
    print("  backend    tiles   tile-steps/s  to one tile  to published   SUMO's own step")
    for backend in ("libsumo", "traci"):
        reference = None
        for n in arguments.tiles:
            _, domain = domain_of(1, backend=backend)
            with domain.local_simulator([0], n) as ls:
                ls.seed([np.random.default_rng(0)])
                ls.reset()
                rng = np.random.default_rng(1)
                api = ls.intersections.sumo._api
                inside, step = [0.0], api.simulationStep

                def timed(step=step, inside=inside):
                    begin = time.perf_counter()
                    step()
                    inside[0] += time.perf_counter() - begin

                def work(ls=ls, rng=rng, n=n):
                    ls.step((rng.random((1, n)) < SWITCHES) * 1, (rng.random((1, n, 4)) < INFLOW).astype(np.uint8))

                for _ in range(WARM_UP):
                    work()
                api.simulationStep = timed
                begin = time.perf_counter()
                rate = median_rate(work, n, arguments)
                share = inside[0] / (time.perf_counter() - begin)
                api.simulationStep = step
            reference = reference or rate
            ratios = f"{rate / reference:12.2f} {rate / PUBLISHED_TILE:13.2f}"
            print(f"  {backend:8} {n:7} {rate:14,.0f} {ratios} {share:16.0%}", flush=True)


def learners(arguments) -> None:
    print(f"IALS + PPO, one core (published: {PUBLISHED_IALS_PPO:,} agent-steps/s)")
    print("  agents   agent-steps/s  to one agent  to published   simulate      act  ppo_update")
    reference = None
    for n in arguments.agents:
        c, domain = domain_of(n, rows=1, columns=n)
        agents = range(n)
        policy = Policy(agents, domain.observation_size, domain.n_actions, c.policy, 0)
        predictor = InfluencePredictor(agents, domain.influence, c.predictor, 0)
        predictor.network.parameters[:, -4:] = -2.25  # the last biases: sources as frequent as on the roads
        clock = Clock()
        learner = LocalLearners(c, domain, agents, policy, predictor, clock)
        learner.learn(0, range(1), Means())
        before, updates, rates = clock.report(), 5, []
        for _ in range(arguments.repeats):
            begin = time.perf_counter()
            learner.learn(0, range(updates), Means())
            rates.append(updates * c.ppo.rollout_steps * n / (time.perf_counter() - begin))
        learner.close()
        rate = statistics.median(rates)
        reference = reference or rate
        seconds = dict(zip(PHASES, clock.report() - before, strict=False))
        total = sum(seconds.values())
        shares = "  ".join(f"{seconds[phase] / total:9.0%}" for phase in ("simulate", "act", "ppo_update"))
        print(f"  {n:6} {rate:15,.0f} {rate / reference:13.2f} {rate / PUBLISHED_IALS_PPO:13.2f} {shares}", flush=True)


def global_simulators(arguments) -> None:
    b = arguments.copies
    print(f"GS + joint policy, {b} copies (published: {PUBLISHED_GS:,} joint steps/s of the GS alone, 4 lights)")
    print("  lights    GS alone  with policy  joint steps/s; light-steps/s  to the first row")
    reference = None
    for n in arguments.lights:
        c, domain = domain_of(n)
        policy = Policy(range(n), domain.observation_size, domain.n_actions, c.policy, 0)
        player = Player(policy, b, streams(0, "evaluate/actions", range(n)))
        player.reset()
        with domain.global_simulator(b) as gs:
            gs.seed([np.random.default_rng(copy) for copy in range(b)])
            rng = np.random.default_rng(1)
            state = [gs.reset()]

            def alone(gs=gs, rng=rng, n=n):
                gs.step((rng.random((n, b)) < SWITCHES) * 1)

            def together(gs=gs, player=player, rng=rng, n=n, state=state):
                player.act(state[0])  # its actions would be random: these lights let traffic flow
                state[0] = gs.step((rng.random((n, b)) < SWITCHES) * 1).observations

            for _ in range(WARM_UP):
                alone()
            rates = [median_rate(work, b, arguments) for work in (alone, together)]
        lights = rates[0] * n
        reference = reference or lights
        print(f"  {n:6} {rates[0]:11,.0f} {rates[1]:12,.0f} {lights:28,.0f} {lights / reference:17.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
