"""Halo exchange: rows of agents are brought to those near by, whoever owns them, and what those hold for them, back."""

import math
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from dials_mpi.parallel.exchange import transfer
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import LATENESS_OF_PEERS, barrier
from dials_mpi.simulators.neighbourhoods import Graph, neighbourhoods


class Neighbours:
    """The neighbourhoods of one radius: of every agent itself and all that are at most so many hops away.

    | symbol | meaning                                           |
    |--------|---------------------------------------------------|
    | N, A   | agents in the system, agents of this rank         |
    | K      | size of the largest neighbourhood of all N agents |

    An array [A, K, …] holds something for each place of each neighbourhood: the agent itself comes first, the others
    after it by ascending id, then places where nobody is. It is what lies within the neighbourhoods of a matrix [N, N],
    in the rows of this rank's agents.

    Shapes and bits do not depend on the layout. What belongs to agents of one rank is copied there; what does not
    travels as raw bytes, a gathered row once to each rank that needs it.

    All ranks of `comm` make this together. From then on only ranks with neighbours elsewhere meet, in a communicator of
    their own, and all of these call the same methods in the same order. For others a call is local; a rank 0 that owns
    no agents may leave it out, so owners exchange as often as they like while it does something else. There is no
    barrier: a rank waits for rows of its neighbours alone, politely. The clock books that under `wait`, and what is
    copied under the phase of the caller.

    Args:
        graph, radius: as of `neighbourhoods`; None for a critic that sees everybody.
        comm: an intracommunicator, without other messages of tag 2.
        layout: who owns which agents.
        clock: as of `Exchange`.

    Raises:
        ValueError: the graph joins i with j, but not j with i.
    """

    def __init__(self, graph: Graph | None, radius: int | None, comm: MPI.Comm, layout: Layout, clock):
        ids = neighbourhoods(graph, radius, layout.n_agents)
        opposite, ascending = _entries(ids)
        agents = [layout.agents(rank) for rank in range(comm.size)]
        mine = slice(agents[comm.rank].start, agents[comm.rank].stop)
        self.ids: np.ndarray = ids[mine]
        """[A, K] int64: who is at each place; -1 where nobody is."""
        self.mask: np.ndarray = self.ids >= 0
        """[A, K] bool: where somebody is."""
        self._rows = _Plan(ids, agents, 1, comm.rank)
        self._opposite, self._ascending = (
            _Plan(table, agents, ids.shape[1], comm.rank) for table in (opposite, ascending)
        )
        self._clock = clock
        self._comm = MPI.COMM_NULL
        if meeting := self._rows.meeting:
            barrier(comm)
            self._comm = comm.Split(0 if comm.rank in meeting else MPI.UNDEFINED, comm.rank)

    @property
    def sends(self) -> dict[int, int]:
        """How many rows go from this rank to others whenever all gather, by their rank in `comm`."""
        return {rank: rows for rank, rows in zip(self._rows.meeting, self._rows.sent, strict=True) if rows}

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """[A, K, …] from [A, …] of any dtype: the rows of each agent's neighbourhood; zero where nobody is."""
        return self._bring(self._rows, rows, 1)

    def transpose(self, entries: np.ndarray) -> np.ndarray:
        """[A, K, …] from [A, K, …] of any dtype: i gets at j's place what j holds at i's; zero where nobody is."""
        return self._bring(self._opposite, entries, 2)

    def scatter_add(self, entries: np.ndarray) -> np.ndarray:
        """[A, …] from [A, K, …]: for each agent the sum of what all neighbourhoods hold at its place.

        As a linear map it is the transpose of `gather`. Added in the dtype of `entries`, in ascending order of the
        agent whose neighbourhood it is; what stands where nobody is counts for nothing.
        """
        held = self._bring(self._ascending, entries, 2)
        total = held[:, 0].copy()
        for place in range(1, held.shape[1]):  # numpy's own sum has an order of its own
            total += held[:, place]
        return total

    def close(self) -> None:
        """Gives back the communicator; harmless when called twice."""
        if self._comm != MPI.COMM_NULL:
            barrier(self._comm)
            self._comm.Free()

    def _bring(self, plan: "_Plan", array: np.ndarray, axes: int) -> np.ndarray:
        """[A, K, …]: those of the rows of `array` that the plan names; these lie along its first axes."""
        expected, item = self.ids.shape[:axes], array.shape[axes:]
        if array.shape[:axes] != expected:
            raise ValueError(f"an array of shape {array.shape} does not begin with {expected}")
        rows = array.reshape(math.prod(expected), *item)
        brought = rows.take(plan.own, axis=0)
        by_place = brought.reshape(self.ids.size, *item)
        if self._comm != MPI.COMM_NULL:
            received = np.empty((sum(plan.received), *item), rows.dtype)
            sent = rows.take(plan.sent_rows, axis=0)
            with self._clock("wait"):
                transfer(self._comm, sent, plan.sent, received, plan.received, rows, lateness=LATENESS_OF_PEERS)
            by_place[plan.foreign_places] = received.take(plan.foreign, axis=0)
        by_place[plan.empty_places] = 0
        return brought


class _Plan:
    """Which of numbered rows come to the places [A, K] of this rank, and which go from it to others.

    Args:
        table: [N, K], number of the row for each place; -1: none.
        agents: of each rank.
        width: rows per agent; those of agent i begin with number i · width.
        rank: this one.
    """

    def __init__(self, table: np.ndarray, agents: Sequence[range], width: int, rank: int):
        blocks = [range(width * own.start, width * own.stop) for own in agents]
        needed = [np.unique(table[own.start : own.stop]) for own in agents]
        needed = [rows[(rows >= 0) & ~_within(rows, own)] for rows, own in zip(needed, blocks, strict=True)]
        own, mine = blocks[rank], table[agents[rank].start : agents[rank].stop]
        self.meeting = [other for other, rows in enumerate(needed) if len(rows)]
        """Ranks that need rows of others and so, the graph being undirected, have some that others need."""
        sent = [needed[other][_within(needed[other], own)] for other in self.meeting]
        self.sent_rows = np.concatenate([np.empty(0, np.int64), *sent]) - own.start
        """Where the rows for others are among this rank's, one rank after the other."""
        self.sent = [len(rows) for rows in sent]
        """Numbers of them, by rank among those that meet."""
        self.received = [int(_within(needed[rank], blocks[other]).sum()) for other in self.meeting]
        is_own = _within(mine, own)
        self.own = np.where(is_own, mine - own.start, 0)
        """[A, K], where the row of each place is among this rank's; 0 if it is none of them."""
        self.foreign_places = np.flatnonzero(~is_own & (mine >= 0))
        self.foreign = np.searchsorted(needed[rank], mine.flat[self.foreign_places])
        """For each of these places, where its row is among those received, which come by ascending number."""
        self.empty_places = np.flatnonzero(mine < 0)


def _within(numbers: np.ndarray, block: range) -> np.ndarray:
    return (block.start <= numbers) & (numbers < block.stop)


def _entries(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of entries, counted row by row in `ids` [N, K], that agents of other neighbourhoods hold.

    Returns:
        [N, K] number of the entry of i that j holds, at i's place of j; [N, K] numbers of all entries of i, by
        ascending agent who holds it. -1 where there is none.
    """
    here = ids >= 0
    numbers, pairs = np.flatnonzero(here), np.stack([np.nonzero(here)[0], ids[here]])
    by_first, by_second = np.lexsort(pairs[::-1]), np.lexsort(pairs)
    if not np.array_equal(pairs[:, by_first], pairs[::-1, by_second]):
        raise ValueError("the graph is not undirected: it joins an agent with another one, but not that one with it")
    opposite, ascending = np.full((2, *ids.shape), -1, np.int64)
    opposite.flat[numbers[by_first]] = numbers[by_second]
    ascending[here] = numbers[by_second]
    return opposite, ascending
