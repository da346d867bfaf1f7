#!/usr/bin/env python3
"""What a checkpoint costs: seconds and bytes, by number of agents, with the default networks.

Every rank takes part as in a run; the figure is the time from the boundary to the return of all ranks, median over
repeats. It is printed as a share of the default interval, and as a ratio to writing as many bytes into one file with
one fsync.

    mpirun -n 3 python tools/bench_checkpoint.py
    python tools/bench_checkpoint.py --env traffic --agents 25
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import torch  # noqa: E402
from mpi4py import MPI  # noqa: E402

from dials_mpi.algorithms.checkpointing import Checkpointing  # noqa: E402
from dials_mpi.cli import at_least  # noqa: E402
from dials_mpi.config import Configuration, resolve  # noqa: E402
from dials_mpi.influence.predictor import InfluencePredictor  # noqa: E402
from dials_mpi.learning.policy import Policy  # noqa: E402
from dials_mpi.learning.ppo import PPO  # noqa: E402
from dials_mpi.parallel.exchange import Exchange  # noqa: E402
from dials_mpi.parallel.layout import Layout  # noqa: E402
from dials_mpi.runs.checkpoint import all_checkpoints  # noqa: E402
from dials_mpi.runs.clock import Clock  # noqa: E402
from dials_mpi.runs.stopping import StopFlag  # noqa: E402
from dials_mpi.simulators.registry import BUILT_IN, make_domain  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=list(BUILT_IN), default="warehouse", help="whose networks (warehouse)")
    parser.add_argument("--agents", type=at_least(1), nargs="+", default=[4, 25, 100], help="(4 25 100)")
    parser.add_argument("--repeats", type=at_least(1), default=7, help="repeats per figure (7)")
    parser.add_argument("--folder", type=Path, help="where to write: the file system decides (the temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        print(f"{comm.size} ranks, default networks of {arguments.env}")
        print(f"{'agents':>6} {'MB':>8} {'KB/agent':>9} {'s':>7} {'of interval':>12} {'× one file':>11}")
    for agents in arguments.agents:
        measure(comm, resolve([("", {"env": arguments.env, "agents": agents})], agents), arguments)


def measure(comm: MPI.Comm, configuration: Configuration, arguments: argparse.Namespace) -> None:
    c = configuration
    domain = make_domain(c.env, c.agents, c.domain)
    layout = Layout(c.agents, comm.size)
    agents = layout.agents(comm.rank)
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as own:
        folder = Path(comm.bcast(own))
        checkpoints = Checkpointing(
            c, layout, comm.rank, Exchange(comm, layout, clock), clock, folder, StopFlag(), resumed=None
        )
        policy = Policy(agents, domain.observation_size, domain.n_actions, c.policy, c.seed)
        predictor = InfluencePredictor(agents, domain.influence, c.predictor, c.seed)
        checkpoints.keep("policy", policy.parameters)
        checkpoints.keep("predictor", predictor.network.parameters)
        if agents:
            checkpoints.keep_optimiser(PPO(policy, c.ppo, domain.horizon).optimiser)
        seconds = []
        for repeat in range(arguments.repeats):
            comm.barrier()
            begin = time.perf_counter()
            checkpoints.finish(repeat)
            comm.barrier()
            seconds.append(time.perf_counter() - begin)
        if comm.rank == 0:
            newest = all_checkpoints(folder / "checkpoints")[0]
            size = sum(file.stat().st_size for file in newest.iterdir())
            median = statistics.median(seconds)
            reference = statistics.median(_one_file(folder / "one", size) for _ in range(arguments.repeats))
            print(
                f"{c.agents:6} {size / 1e6:8.1f} {size / 1e3 / c.agents:9.1f} {median:7.3f} "
                f"{median / (60 * c.checkpoint.minutes):12.3%} {median / reference:11.1f}",
                flush=True,
            )
        comm.barrier()


def _one_file(path: Path, size: int) -> float:
    content = os.urandom(size)
    begin = time.perf_counter()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
