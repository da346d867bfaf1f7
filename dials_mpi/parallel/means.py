"""Means over all agents that do not depend, to the bit, on which rank owns which of them."""

import numpy as np
from mpi4py import MPI

from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import LATENESS_OF_PEERS, barrier, wait

_SCALE = 2.0**32


class ExactMeans:
    """Means of rows over all N agents, added in integers: sums of floats depend on their order.

    Values are rounded to multiples of 2⁻³², and what is beyond ±2³⁰ / N counts as that much: of gradients the one is
    drowned by the ε of an optimiser, and the other means that learning has failed.

    All ranks make this together. From then on the owners of agents meet alone, in a communicator of their own; a rank 0
    that owns none may do something else.

    Args:
        comm: an intracommunicator, without other messages of tag 2.
        layout: who owns which agents.
        clock: books the phases `wait` and `gather`.
    """

    def __init__(self, comm: MPI.Comm, layout: Layout, clock):
        self._n_agents = layout.n_agents
        self._agents = layout.agents(comm.rank)
        self._clock = clock
        self._limit = 2.0**30 / layout.n_agents
        barrier(comm)
        self._owners = comm.Split(0 if self._agents else MPI.UNDEFINED, comm.rank)

    def over_agents(self, rows: np.ndarray) -> np.ndarray:
        """[P] float32, the same on all owners, from the rows [A, P] float32 of each.

        Raises:
            FloatingPointError: a value is not finite; on the rank that has it.
        """
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise FloatingPointError(f"learning of agent {self._agents[int(finite.argmin())]}: values are not finite")
        with self._clock("gather"):
            scaled = rows.astype(np.float64)
            np.clip(scaled, -self._limit, self._limit, out=scaled)
            scaled *= _SCALE
            total = np.rint(scaled, out=scaled).astype(np.int64).sum(axis=0)
        if self._owners.size > 1:
            with self._clock("wait"):
                mine, total = total, np.empty_like(total)
                wait(self._owners.Iallreduce(mine, total, MPI.SUM), lateness=LATENESS_OF_PEERS)
        return (total / (_SCALE * self._n_agents)).astype(np.float32)

    def close(self) -> None:
        """Gives back the communicator; harmless when called twice."""
        if self._owners != MPI.COMM_NULL:
            barrier(self._owners)
            self._owners.Free()
