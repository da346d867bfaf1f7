"""What a checkpoint costs, by number of agents; one JSON object a line. Started by bench.py, under mpirun.

Every rank takes part as in a run; the time is from the boundary to the return of all ranks.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import torch  # noqa: E402
from mpi4py import MPI  # noqa: E402

from dials_mpi.config import Configuration, resolve  # noqa: E402
from dials_mpi.influence.predictor import InfluencePredictor  # noqa: E402
from dials_mpi.learning.policy import Policy  # noqa: E402
from dials_mpi.learning.ppo import PPO  # noqa: E402
from dials_mpi.parallel.exchange import Exchange  # noqa: E402
from dials_mpi.parallel.layout import Layout  # noqa: E402
from dials_mpi.runs.checkpoint import all_checkpoints  # noqa: E402
from dials_mpi.runs.clock import Clock  # noqa: E402
from dials_mpi.runs.stopping import StopFlag  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.training.checkpointing import Checkpointing  # noqa: E402

_REPEATS = 7


def measure(comm: MPI.Comm, c: Configuration, where: str) -> None:
    domain = make_domain(c.env, c.agents, c.domain)
    layout = Layout(c.agents, comm.size)
    agents = layout.agents(comm.rank)
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=where) as own:
        folder = Path(comm.bcast(own))
        checkpoints = Checkpointing(
            c, layout, comm.rank, Exchange(comm, layout, clock), clock, folder, StopFlag(), resumed=None
        )
        policy = Policy(agents, domain.observation_size, domain.n_actions, c.policy, c.seed)
        predictor = InfluencePredictor(agents, domain.influence, c.predictor, c.seed, n_actions=domain.n_actions)
        checkpoints.keep("policy", policy.parameters)
        checkpoints.keep("predictor", predictor.network.parameters)
        if agents:
            checkpoints.keep_optimiser(PPO(policy, c.ppo, domain.horizon).optimiser)
        seconds = []
        for repeat in range(_REPEATS):
            comm.barrier()
            begin = time.perf_counter()
            checkpoints.finish(repeat)
            comm.barrier()
            seconds.append(time.perf_counter() - begin)
        if comm.rank == 0:
            newest = all_checkpoints(folder / "checkpoints")[0]
            size = sum(file.stat().st_size for file in newest.iterdir())
            cost = {
                "env": c.env,
                "agents": c.agents,
                "bytes": size,
                "seconds": seconds,
                "one_file_seconds": [one_file(folder / "one", size) for _ in range(_REPEATS)],
                "interval_seconds": 60 * c.checkpoint.minutes,
            }
            print(json.dumps(cost), flush=True)
        comm.barrier()


def one_file(path: Path, size: int) -> float:
    """Seconds that writing as many bytes into one file takes, with one fsync."""
    content = os.urandom(size)
    begin = time.perf_counter()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begin


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *sizes = sys.argv[1:]
    for env in ("warehouse", "traffic"):
        for size in map(int, sizes):
            measure(MPI.COMM_WORLD, resolve([("bench", {"env": env, "agents": size})], size), folder)
