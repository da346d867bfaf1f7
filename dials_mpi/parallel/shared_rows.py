"""Rows of all agents for the ranks of a machine that need them all: in its memory once."""

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from dials_mpi.parallel.waiting import barrier


def ranks_of_this_machine(comm: MPI.Comm) -> MPI.Comm:
    """A communicator of the ranks that can share memory with this one."""
    return comm.Split_type(MPI.COMM_TYPE_SHARED)


class SharedRows:
    """An array [N, P] float32 that the readers on one machine share; one of them, the host, receives the rows.

    A reader that is alone on its machine has an array of its own. All ranks of `comm` make and close it together.

    Args:
        comm: all ranks.
        readers: those that read it.
        shape: N, P.
    """

    def __init__(self, comm: MPI.Comm, readers: Sequence[int], shape: tuple[int, int]):
        self.rows: np.ndarray | None = None
        """[N, P] on readers, None elsewhere."""
        self._window = None
        machine = ranks_of_this_machine(comm)
        self._readers = machine.Split(0 if comm.rank in readers else MPI.UNDEFINED, comm.rank)
        machine.Free()
        is_host = False
        if self._readers != MPI.COMM_NULL:
            is_host = self._readers.rank == 0
            if self._readers.size == 1:
                self.rows = np.zeros(shape, np.float32)
            else:
                size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
                self._window = MPI.Win.Allocate_shared(size if is_host else 0, comm=self._readers)
                self._window.Lock_all(MPI.MODE_NOCHECK)
                self.rows = np.frombuffer(self._window.Shared_query(0)[0], np.float32).reshape(shape)
        self.hosts: list[int] = [rank for rank, host in enumerate(comm.allgather(is_host)) if host]
        """Ranks whose `rows` are to be filled in; the other readers see what they are given."""

    def publish(self) -> None:
        """Readers wait for the host to have filled in `rows`, and then see them."""
        if self._window:
            self._window.Sync()
            barrier(self._readers)
            self._window.Sync()

    def close(self) -> None:
        """Gives the memory back: nobody may look at `rows` any more."""
        self.rows = None
        if self._window:
            barrier(self._readers)
            self._window.Unlock_all()
            self._window.Free()
            self._window = None
        if self._readers != MPI.COMM_NULL:
            self._readers.Free()
