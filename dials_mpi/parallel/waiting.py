"""Waiting politely.

MPI implementations spin in blocking calls: a waiting rank burns a core that a working one needs. Here a rank waits on
non-blocking operations and sleeps between looks.
"""

import time
from collections.abc import Callable

_BARRIER_TAG = 2
_SHORTEST_PAUSE = 20e-6
_LONGEST_PAUSE = 50e-3
"""Seconds. A look costs 30 µs after a short pause and some 100 µs after one in which the core went idle, so a wait of
seconds costs a quarter of a per cent of a core."""
_QUICK_PAUSE = 10e-3
_LATENESS = 1 / 16
"""Pauses longer than `_QUICK_PAUSE` are at most this share of the time waited, so that nobody comes late by more."""
LATENESS_OF_PEERS = 1 / 4
"""For ranks that wait for each other at every step, and would pass their lateness on: with pauses that double, three
and five of them took two to three times as long for steps of 1 to 2 ms. A barrier before cost them 10 to 30 %."""


def wait(
    request,
    longest_pause: float = _LONGEST_PAUSE,
    meanwhile: Callable[[], bool] | None = None,
    lateness: float = 1.0,
) -> None:
    """Returns when `request` (an MPI request) is complete.

    Args:
        request: of a non-blocking operation.
        longest_pause: seconds; pauses grow with the time waited, up to this.
        meanwhile: called between two looks; whether it has done some work, after which the next look comes at once.
        lateness: share of the time waited that pauses up to `_QUICK_PAUSE` are at most; with 1 they double.
    """
    waited = 0.0
    while not request.Test():
        if meanwhile and meanwhile():
            continue
        pause = min(max(_SHORTEST_PAUSE, waited * lateness), max(_QUICK_PAUSE, waited * _LATENESS), longest_pause)
        time.sleep(pause)
        waited += pause


def barrier(comm, meanwhile: Callable[[], bool] | None = None) -> None:
    """Returns when all ranks of `comm` have called it.

    They report to rank 0, which lets them go: two messages one after the other, where MPI's own barrier passes on a
    number of them that grows with the ranks, each only when a rank that sleeps looks again.

    Args:
        comm: an intracommunicator, with no other messages of tag 2.
        meanwhile: as of `wait`; called on rank 0 alone.
    """
    nothing = bytearray()
    if comm.rank:
        wait(comm.Isend(nothing, dest=0, tag=_BARRIER_TAG))
        wait(comm.Irecv(nothing, source=0, tag=_BARRIER_TAG))
        return
    others = range(1, comm.size)
    for arrival in [comm.Irecv(nothing, source=rank, tag=_BARRIER_TAG) for rank in others]:
        wait(arrival, meanwhile=meanwhile)
    for release in [comm.Isend(nothing, dest=rank, tag=_BARRIER_TAG) for rank in others]:
        wait(release)
