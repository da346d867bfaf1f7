"""Moving rows of per-agent arrays between their owners and rank 0.

Rows travel as raw bytes of contiguous buffers; nothing is pickled. Every transfer waits for all ranks first (the
barriers of Algorithm 1), politely and for as long as it takes, so that the transfer itself is short.
"""

import numpy as np
from mpi4py import MPI

from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import wait

_TRANSFER_PAUSE = 100e-6  # seconds; everybody is there, and large messages need many looks to get through


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

    def barrier(self) -> None:
        """Waits for all ranks."""
        with self._clock("wait"):
            wait(self._comm.Ibarrier())

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

    def gather_report(self, values: np.ndarray) -> np.ndarray | None:
        """[n_ranks, K] on rank 0 from [K] float64 on each rank, None elsewhere."""
        values = np.ascontiguousarray(values, np.float64)
        reports = np.empty((self._comm.size, len(values))) if self._comm.rank == 0 else None
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
