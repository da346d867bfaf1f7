"""Faults on demand, for tests of what happens when a rank stops or dies at the worst moment.

The environment variable `DIALS_MPI_FAULT=POINT:COUNT:SIGNAL[:RANK]` sends this process the signal when it comes to a
point for the COUNT-th time, for example `boundary:3:USR1` or `checkpoint/shard:1:KILL:2`. Without it nothing happens.
"""

import os
import signal

from dials_mpi.parallel.launcher import launched_rank

_VARIABLE = "DIALS_MPI_FAULT"
_seen: dict[str, int] = {}


def point(name: str) -> None:
    """A place where a fault can be asked for."""
    wish = os.environ.get(_VARIABLE)
    if not wish:
        return
    wanted, count, number, *rank = wish.split(":")
    if wanted != name or (rank and int(rank[0]) != launched_rank()):
        return
    _seen[name] = _seen.get(name, 0) + 1
    if _seen[name] == int(count):
        os.kill(os.getpid(), signal.Signals[f"SIG{number}"])
