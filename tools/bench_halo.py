"""What a halo exchange costs, by the size of a row; one JSON object a line. Started by bench.py, under mpirun.

Every rank owns agents of a grid, each of which sees those beside it. The exchange by itself is timed, too, beside MPI's
own for graphs of neighbours, with the same data and the same waiting.
"""

import json
import os
import sys
import time
from collections.abc import Callable

from dials_mpi.parallel.threads import keep_freed_memory, one_thread

one_thread(os.environ)
keep_freed_memory()

import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402

from dials_mpi.parallel.exchange import transfer  # noqa: E402
from dials_mpi.parallel.layout import Layout  # noqa: E402
from dials_mpi.parallel.neighbours import Neighbours  # noqa: E402
from dials_mpi.parallel.waiting import LATENESS_OF_PEERS, wait  # noqa: E402
from dials_mpi.runs.clock import Clock  # noqa: E402
from dials_mpi.simulators.grid import grid_graph  # noqa: E402

_SIDE = 10
_AT_ONCE = 10
"""Exchanges between two looks at the time."""


def measure(comm: MPI.Comm, row_bytes: int, seconds: float) -> dict[str, float]:
    layout = Layout(_SIDE**2, comm.size, coordinator_works=True)
    neighbours = Neighbours(grid_graph((_SIDE, _SIDE)), 1, comm, layout, Clock())
    rows = np.ones((len(layout.agents(comm.rank)), row_bytes), np.uint8)
    sent = [neighbours.sends.get(rank, 0) for rank in range(comm.size)]
    received = comm.alltoall(sent)
    source, into = (np.ones((sum(counts), row_bytes), np.uint8) for counts in (sent, received))
    near = [rank for rank, number in enumerate(sent) if number]
    graph = comm.Create_dist_graph_adjacent(near, near)
    item = MPI.BYTE.Create_contiguous(row_bytes).Commit()
    message, target = (
        [array, ([counts[rank] for rank in near], None), item] for array, counts in ((source, sent), (into, received))
    )

    def neighbour_collective() -> None:
        wait(graph.Ineighbor_alltoallv(message, target), lateness=LATENESS_OF_PEERS)

    times = {
        "gather": lambda: neighbours.gather(rows),
        "exchange": lambda: transfer(comm, source, sent, into, received, rows, lateness=LATENESS_OF_PEERS),
        "neighbour_collective": neighbour_collective,
    }
    cost = {name: once(comm, work, seconds / len(times)) for name, work in times.items()}
    item.Free()
    graph.Free()
    neighbours.close()
    return cost | {"received_bytes": comm.allreduce(sum(received), MPI.MAX) * row_bytes}


def once(comm: MPI.Comm, work: Callable[[], object], seconds: float) -> float:
    """Wall time of `work`, which all ranks do together again and again; rank 0 says until when."""
    work()
    comm.barrier()
    calls, begin, going_on = 0, time.perf_counter(), True
    while going_on:
        for _ in range(_AT_ONCE):
            work()
        calls += _AT_ONCE
        elapsed = time.perf_counter() - begin
        going_on = comm.bcast(elapsed < seconds)
    return elapsed / calls


if __name__ == "__main__":
    seconds, *sizes = sys.argv[1:]
    for size in map(int, sizes):
        cost = measure(MPI.COMM_WORLD, size, float(seconds))
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps({"row_bytes": size, **cost}), flush=True)
