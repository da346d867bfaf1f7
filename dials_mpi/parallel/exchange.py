"""Moving rows of per-agent arrays between their owners and rank 0.

Rows travel as raw bytes of contiguous buffers; nothing is pickled. Every transfer waits for all ranks first (the
barriers of Algorithm 1), politely and for as long as it takes, so that the transfer itself is short.
"""

import math
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import wait

_TRANSFER_PAUSE = 100e-6  # seconds; everybody is there, and large messages need many looks to get through
_PROGRESS_SECONDS = 1.0
_PROGRESS_TAG = 1
_REPORTER = 1  # the rank whose progress stands for all
_NO_MORE_PROGRESS = -1


class Exchange:
    """Collectives of one communicator. All ranks call the same methods in the same order.

    Args:
        comm: an intracommunicator whose rank 0 coordinates.
        layout: who owns which agents.
        clock: `clock(phase)` is a context manager; waiting is booked under `wait`.
    """

    def __init__(self, comm: MPI.Comm, layout: Layout, clock):
        self._comm = comm
        self._counts = layout.counts()
        self._mine = self._counts[comm.rank]
        self._clock = clock
        self._sends_progress = comm.rank == _REPORTER < comm.size
        self._receives_progress = comm.rank == 0 and comm.size > _REPORTER
        self._progress = np.zeros(1, np.int64)
        self._posted = MPI.REQUEST_NULL
        self._posted_at = -math.inf
        self.on_progress: Callable[[int], None] = lambda progress: None
        """On rank 0: called with the last progress posted, while it waits for the owners."""

    def barrier(self) -> None:
        """Waits for all ranks."""
        with self._clock("wait"):
            wait(self._comm.Ibarrier(), meanwhile=self._receive_progress if self._receives_progress else None)

    def post_progress(self, progress: int) -> None:
        """Owners tell how far they are; the first one's word goes to rank 0, about once a second, without waiting."""
        now = time.monotonic()
        if self._sends_progress and now - self._posted_at > _PROGRESS_SECONDS and self._posted.Test():
            self._progress[0] = progress
            self._posted = self._comm.Isend(self._progress, dest=0, tag=_PROGRESS_TAG)
            self._posted_at = now

    def close(self) -> None:
        """Receives what is still under way; the last call of all ranks."""
        self.barrier()
        if self._sends_progress:
            wait(self._posted)
            self._progress[0] = _NO_MORE_PROGRESS
            wait(self._comm.Isend(self._progress, dest=0, tag=_PROGRESS_TAG))
        while self._receives_progress and self._progress[0] != _NO_MORE_PROGRESS:
            wait(self._comm.Irecv(self._progress, source=_REPORTER, tag=_PROGRESS_TAG))

    def _receive_progress(self) -> None:
        while self._comm.Iprobe(source=_REPORTER, tag=_PROGRESS_TAG):
            self._comm.Recv(self._progress, source=_REPORTER, tag=_PROGRESS_TAG)
            self.on_progress(int(self._progress[0]))

    def gather_rows(self, rows: np.ndarray, into: np.ndarray | None) -> None:
        """Collects every owner's rows on rank 0.

        Args:
            rows: [A, …] C-contiguous, this rank's agents.
            into: [N, …] C-contiguous, same dtype; on rank 0, None elsewhere.
        """
        self.barrier()
        with self._clock("gather"):
            row = _row_type(rows)
            target = None if into is None else [_bytes(into), self._counts, None, row]
            wait(self._comm.Igatherv([_bytes(rows), self._mine, row], target, root=0), _TRANSFER_PAUSE)
            row.Free()

    def scatter_rows(self, source: np.ndarray | None, rows: np.ndarray) -> None:
        """Sends every owner its rows from rank 0.

        Args:
            source: [N, …] C-contiguous; on rank 0, None elsewhere.
            rows: [A, …] C-contiguous, same dtype, to be filled.
        """
        self.barrier()
        with self._clock("scatter"):
            row = _row_type(rows)
            message = None if source is None else [_bytes(source), self._counts, None, row]
            wait(self._comm.Iscatterv(message, [_bytes(rows), self._mine, row], root=0), _TRANSFER_PAUSE)
            row.Free()

    def greatest(self, values: np.ndarray) -> np.ndarray:
        """[K] int64, the same on all ranks: the elementwise maximum of all ranks' `values`."""
        self.barrier()
        result = np.empty_like(values)
        wait(self._comm.Iallreduce(values, result, MPI.MAX), _TRANSFER_PAUSE)
        return result

    def gather_report(self, values: np.ndarray) -> np.ndarray | None:
        """[n_ranks, K] on rank 0 from [K] numbers on each rank, None elsewhere."""
        reports = np.empty((self._comm.size, len(values)), values.dtype) if self._comm.rank == 0 else None
        self.barrier()
        wait(self._comm.Igather(values, reports, root=0), _TRANSFER_PAUSE)
        return reports


def _row_type(rows: np.ndarray) -> MPI.Datatype:
    """One agent's row as a datatype: counts are then numbers of agents, which never overflow an int."""
    return MPI.BYTE.Create_contiguous(int(np.prod(rows.shape[1:])) * rows.itemsize).Commit()


def _bytes(array: np.ndarray) -> np.ndarray:
    if not array.flags.c_contiguous:
        raise ValueError("an array that travels must be C-contiguous")
    return array.reshape(-1).view(np.uint8)
