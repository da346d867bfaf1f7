"""Moving rows of per-agent arrays between their owners and the ranks that see all agents.

Rows travel as raw bytes of contiguous buffers; nothing is pickled. Every call waits for all ranks first (the barriers
of Algorithm 1), politely and for as long as it takes, so that its transfers themselves are short.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from mpi4py import MPI

from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import barrier, wait

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
        self._owned = [layout.agents(rank) for rank in range(comm.size)]
        self._ranks = range(comm.size)
        self._everybody, self._nobody = range(layout.n_agents), range(0)
        self._clock = clock
        reports = comm.size > _REPORTER and not self._owned[0]  # a rank 0 that owns agents knows by itself
        self._sends_progress = reports and comm.rank == _REPORTER
        self._receives_progress = reports and comm.rank == 0
        self._progress = np.zeros(1, np.int64)
        self._posted = MPI.REQUEST_NULL
        self._posted_at = -math.inf
        self.on_progress: Callable[[int], None] = lambda progress: None
        """On rank 0: called with the last progress posted, while it waits for the owners."""
        self.spare_work: Callable[[], bool] = lambda: False
        """On rank 0: does a bit of work while it waits for the others; whether there was any."""

    def barrier(self) -> None:
        """Waits for all ranks."""
        with self._clock("wait"):
            barrier(self._comm, meanwhile=self._meanwhile)

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

    def receive_progress(self) -> None:
        """On rank 0: what owners have posted so far; elsewhere, or if none do, nothing."""
        while self._receives_progress and self._comm.Iprobe(source=_REPORTER, tag=_PROGRESS_TAG):
            self._comm.Recv(self._progress, source=_REPORTER, tag=_PROGRESS_TAG)
            self.on_progress(int(self._progress[0]))

    def _meanwhile(self) -> bool:
        self.receive_progress()
        return self.spare_work()

    def gather_rows(self, rows: np.ndarray, into: np.ndarray | None, receivers: Sequence[int] = (0,)) -> None:
        """Collects every owner's rows.

        Args:
            rows: [A, …] C-contiguous, this rank's agents.
            into: [N, …] C-contiguous, same dtype; left alone elsewhere than on receivers, where it may be None.
            receivers: ranks that are to have all rows.
        """
        self.barrier()
        with self._clock("gather"):
            wants = [self._everybody if rank in receivers else self._nobody for rank in self._ranks]
            self._move(rows, self._owned, wants, [1] * self._comm.size, into, rows)

    def scatter_rows(self, source: np.ndarray | None, rows: np.ndarray) -> None:
        """Sends every owner its rows from rank 0.

        Args:
            source: [N, …] C-contiguous; on rank 0, None elsewhere.
            rows: [A, …] C-contiguous, same dtype, to be filled.
        """
        self.barrier()
        with self._clock("scatter"):
            has = [self._nobody if rank else self._everybody for rank in self._ranks]
            self._move(source, has, self._owned, [1] * self._comm.size, rows, rows)

    def deal_columns(
        self,
        arrays: Sequence[tuple[np.ndarray | None, np.ndarray]],
        members: Mapping[int, range],
        to_owners: bool = True,
    ) -> None:
        """Sends arrays of all agents from several ranks to those who put them together.

        Args:
            arrays: pairs of a source, [N, B, …] C-contiguous on the ranks in `members` and None elsewhere, and of what
                it goes into, [A, E, …] or, for rank 0 alone, [N, E, …], same dtype; columns of that are filled in.
            members: which columns each rank has, B of them.
            to_owners: every owner gets the rows of its agents; False: rank 0 gets all, and what sources go into is
                [0, E, …] elsewhere.
        """
        self.barrier()
        with self._clock("scatter"):
            has = [self._everybody if rank in members else self._nobody for rank in self._ranks]
            wants = self._owned if to_owners else [self._nobody if rank else self._everybody for rank in self._ranks]
            widths = [len(members.get(rank, ())) for rank in self._ranks]
            for source, into in arrays:
                agents, _, *item = into.shape
                received = np.empty((sum(widths) * agents, *item), into.dtype)
                self._move(source, has, wants, widths, received, into[:, 0])
                first = 0
                for rank, columns in sorted(members.items()):
                    block = received[first : first + agents * widths[rank]]
                    into[:, columns] = block.reshape(agents, widths[rank], *item)
                    first += len(block)

    def _move(
        self,
        source: np.ndarray | None,
        has: Sequence[range],
        wants: Sequence[range],
        widths: Sequence[int],
        into: np.ndarray | None,
        like: np.ndarray,
    ) -> None:
        """Every rank gets what it wants of what others have.

        Args:
            source: [agents that this rank has, its width, …]; None where it has none.
            has, wants: consecutive agents, by rank.
            widths: items per agent, by the rank that has them.
            into: the agents wanted from the first rank that has any, then those from the next one, and so on.
            like: [rows, …], whose rows have the size of one item.
        """
        me = self._comm.rank
        sent = [_both(has[me], want) for want in wants]
        received = [_both(have, wants[me]) for have in has]
        transfer(
            self._comm,
            source,
            [len(agents) * widths[me] for agents in sent],
            into,
            [len(agents) * width for agents, width in zip(received, widths, strict=True)],
            like,
            [(agents.start - has[me].start) * widths[me] if agents else 0 for agents in sent],
            longest_pause=_TRANSFER_PAUSE,
        )

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


def transfer(
    comm: MPI.Comm,
    source: np.ndarray | None,
    sent: Sequence[int],
    into: np.ndarray | None,
    received: Sequence[int],
    like: np.ndarray,
    begins: Sequence[int] | None = None,
    **pauses: float,
) -> None:
    """Sends every rank of `comm` some items, and receives those of every rank.

    Args:
        source, into: C-contiguous; None where there is nothing to send or to receive.
        sent, received: numbers of items, by rank.
        like: [rows, …], whose rows have the size of one item.
        begins: where the items for each rank begin in `source`; None: one after the other, as in `into`.
        pauses: as of `wait`.
    """
    # Counts are numbers of items, not of bytes: they never overflow an int.
    item = MPI.BYTE.Create_contiguous(math.prod(like.shape[1:]) * like.itemsize).Commit()
    message, target = [_bytes(source), sent, begins, item], [_bytes(into), received, None, item]
    wait(comm.Ialltoallv(message, target), **pauses)
    item.Free()


def _both(one: range, other: range) -> range:
    """What two ranges have in common."""
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _bytes(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        return np.empty(0, np.uint8)
    if not array.flags.c_contiguous:
        raise ValueError("an array that travels must be C-contiguous")
    return array.reshape(-1).view(np.uint8)
