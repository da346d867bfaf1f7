"""Halo exchange beside dense matrices; the MPI part at 1, 2, 3, 5 and 7 ranks.

mpirun -n 5 python -m pytest --with-mpi
"""

import time

import numpy as np
import pytest
from conftest import sub_communicator
from mpi4py import MPI

from dials_mpi.parallel import neighbours as module
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.neighbours import Neighbours
from dials_mpi.parallel.waiting import wait
from dials_mpi.runs.clock import PHASES, Clock
from dials_mpi.simulators.grid import grid_graph

WORLD = MPI.COMM_WORLD
SIZES = [size for size in (1, 2, 3, 5, 7) if size <= WORLD.size]


def joined(n: int, *edges: tuple[int, int]) -> np.ndarray:
    """[n, n] bool."""
    adjacency = np.zeros((n, n), bool)
    for i, j in edges:
        adjacency[i, j] = adjacency[j, i] = True
    return adjacency


def random_graph(n: int, probability: float) -> np.ndarray:
    upper = np.triu(np.random.default_rng(n).random((n, n)) < probability, 1)
    return upper | upper.T


GRAPHS = {
    "line": joined(8, *((i, i + 1) for i in range(7))),
    "ring": joined(7, *((i, (i + 1) % 7) for i in range(7))),
    "grid": joined(
        12, *((i, i + 1) for i in range(12) if i % 4 < 3), *((i, i + 4) for i in range(8))
    ),
    "star": joined(9, *((4, i) for i in range(9) if i != 4)),
    "islands": joined(10, (0, 9), (9, 4), (4, 0), (1, 2), (2, 7), (7, 6), (6, 8)),  # 3 and 5 have nobody
    "strangers": joined(7),
    "random": random_graph(11, 0.3),
    "dense": random_graph(15, 0.7),
}  # fmt: skip
RADII = [0, 1, 2, 3, 15, None]


def lists(adjacency: np.ndarray) -> list[list[int]]:
    """In no good order."""
    return [np.flatnonzero(row)[::-1].tolist() for row in adjacency]


def reached(adjacency: np.ndarray, radius: int | None) -> np.ndarray:
    """[N, N] bool: the radius-th boolean power of the adjacency with ones on the diagonal."""
    if radius is None:
        return np.ones_like(adjacency)
    power = one_hop = np.eye(len(adjacency), dtype=bool)
    one_hop = one_hop | adjacency
    for _ in range(radius):
        power = power.astype(int) @ one_hop > 0
    return power


def order(near: np.ndarray) -> list[list[int]]:
    """Of every agent the agents at its places."""
    return [[i, *(j for j in range(len(near)) if near[i, j] and j != i)] for i in range(len(near))]


def gathered(everything: np.ndarray, near: np.ndarray) -> np.ndarray:
    """[N, K, …] from [N, …]."""
    result = np.zeros((len(near), near.sum(axis=1).max(), *everything.shape[1:]), everything.dtype)
    for i, others in enumerate(order(near)):
        for place, j in enumerate(others):
            result[i, place] = everything[j]
    return result


def entries(matrix: np.ndarray, near: np.ndarray, elsewhere) -> np.ndarray:
    """[N, K, …]: what the neighbourhoods hold of a matrix [N, N, …]; `elsewhere` where nobody is."""
    result = np.full((len(near), near.sum(axis=1).max(), *matrix.shape[2:]), elsewhere, matrix.dtype)
    for i, others in enumerate(order(near)):
        result[i, : len(others)] = matrix[i, others]
    return result


def column_sums(matrix: np.ndarray, near: np.ndarray, rows) -> np.ndarray:
    """[N, …] from [N, N, …], added one by one in the order of `rows`."""
    result = np.zeros(matrix.shape[1:], matrix.dtype)
    for j in range(len(near)):
        for i in rows:
            if near[i, j]:
                result[j] = result[j] + matrix[i, j]
    return result


def uneven_matrix(n: int, *item: int) -> np.ndarray:
    """[n, n, …] float32 whose sums differ with the order that they are added in."""
    generator = np.random.default_rng(n)
    shape = (n, n, *item)
    return (generator.normal(size=shape) * 10 ** generator.uniform(-4, 4, shape)).astype(np.float32)


def check_gather(neighbours: Neighbours, near: np.ndarray, mine: list[int]) -> None:
    who = gathered(np.arange(1, len(near) + 1), near) - 1
    assert neighbours.ids.dtype == np.int64
    assert np.array_equal(neighbours.ids, who[mine])
    assert neighbours.mask.dtype == bool
    assert np.array_equal(neighbours.mask, who[mine] >= 0)
    generator = np.random.default_rng(1)
    for item, dtype in (
        ((), np.uint8),
        ((4, 5), np.float32),
        ((2, 0), np.float32),
        ((3,), np.bool_),
        ((), np.int64),
        ((7,), np.float16),
        ((2, 3), "u1,f4"),
    ):
        everything = np.zeros((len(near), *item), dtype)
        everything.view(np.uint8).flat = generator.integers(2, size=everything.nbytes)
        expected = gathered(everything, near)[mine]
        for rows in (everything[mine], np.repeat(everything[mine], 2, axis=0)[::2]):
            result = neighbours.gather(rows)
            assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
            assert result.tobytes() == expected.tobytes()


def check_scatter_add(neighbours: Neighbours, near: np.ndarray, mine: list[int]) -> None:
    for item in ((), (3,), (2, 4)):
        matrix = uneven_matrix(len(near), *item)
        result = neighbours.scatter_add(entries(matrix, near, np.nan)[mine])
        assert result.dtype == np.float32
        assert result.tobytes() == column_sums(matrix, near, range(len(near)))[mine].tobytes()
        where = near.reshape(*near.shape, *(1 for _ in item))
        exact = (matrix.astype(np.float64) * where).sum(axis=0)[mine]
        room = 1e-6 * np.abs(matrix * where).sum(axis=0)[mine]
        assert (np.abs(result - exact) <= room).all()


def check_transpose(neighbours: Neighbours, near: np.ndarray, mine: list[int]) -> None:
    for item in ((), (3, 2), (2, 0)):
        for dtype in (np.float32, np.int64, np.uint8):
            matrix = np.random.default_rng(3).integers(200, size=(*near.shape, *item)).astype(dtype)
            held = entries(matrix, near, 1)[mine]
            result = neighbours.transpose(held)
            assert result.tobytes() == entries(matrix.swapaxes(0, 1), near, 0)[mine].tobytes()
            assert np.array_equal(neighbours.transpose(result)[neighbours.mask], held[neighbours.mask])


def check(adjacency: np.ndarray, comm: MPI.Comm, layout: Layout) -> None:
    for radius in RADII:
        near = reached(adjacency, radius)
        neighbours = Neighbours(lists(adjacency), radius, comm, layout, Clock())
        for check_one in (check_gather, check_scatter_add, check_transpose):
            check_one(neighbours, near, list(layout.agents(comm.rank)))
        neighbours.close()
        neighbours.close()  # is harmless


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_rank_has_what_dense_matrices_give(graph):
    adjacency = GRAPHS[graph]
    check(adjacency, MPI.COMM_SELF, Layout(len(adjacency), 1))


@pytest.mark.mpi
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_layout_has_what_dense_matrices_give(size, works, graph):
    """To the byte, in sums as well."""
    adjacency = GRAPHS[graph]
    with sub_communicator(size) as comm:
        if comm is not None:
            check(adjacency, comm, Layout(len(adjacency), size, coordinator_works=works))


def test_the_sums_that_are_compared_depend_on_the_order_of_adding():
    for adjacency in (GRAPHS["grid"], GRAPHS["star"], GRAPHS["random"]):
        matrix, near = uneven_matrix(len(adjacency)), reached(adjacency, 2)
        n = len(near)
        upwards, downwards = column_sums(matrix, near, range(n)), column_sums(matrix, near, range(n)[::-1])
        assert upwards.tobytes() != downwards.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("size", SIZES)
def test_scattering_is_the_adjoint_of_gathering(size, graph):
    """⟨gather(x), y⟩ = ⟨x, scatter_add(y)⟩, in integers and so exactly."""
    adjacency = GRAPHS[graph]
    n = len(adjacency)
    generator = np.random.default_rng(2)
    x, matrix = generator.integers(-1000, 1000, (n, 3)), generator.integers(-1000, 1000, (n, n, 3))
    with sub_communicator(size) as comm:
        if comm is None:
            return
        layout = Layout(n, size)
        mine = list(layout.agents(comm.rank))
        for radius in RADII:
            neighbours = Neighbours(lists(adjacency), radius, comm, layout, Clock())
            y = entries(matrix, reached(adjacency, radius), 99)[mine]
            products = (neighbours.gather(x[mine]) * y).sum(), (x[mine] * neighbours.scatter_add(y)).sum()
            one, other = comm.allreduce(np.array(products))
            assert one == other != 0
            neighbours.close()


@pytest.fixture
def transfers(monkeypatch) -> list[tuple[int, list[int], list[int]]]:
    """Whatever halo exchange does beyond this process: ranks that meet, rows sent and received, by rank among them."""
    seen = []

    def noted(comm, source, sent, into, received, *more, **pauses):
        seen.append((comm.size, sent, received))
        transfer(comm, source, sent, into, received, *more, **pauses)

    transfer = module.transfer
    monkeypatch.setattr(module, "transfer", noted)
    return seen


LINE_OF_6 = joined(6, *((i, i + 1) for i in range(5)))
PAIRS = joined(6, (0, 1), (2, 3), (4, 5))
HUB = joined(6, *((0, i) for i in range(1, 6)))
MESSAGES = {
    # Two agents a rank; by rank: to whom how many rows go, and how many entries of neighbourhoods.
    "a line": (LINE_OF_6, 1, True, 3, [{1: 1}, {0: 1, 2: 1}, {1: 1}], [{1: 1}, {0: 1, 2: 1}, {1: 1}]),
    "a line, two hops": (LINE_OF_6, 2, True, 3, [{1: 2}, {0: 2, 2: 2}, {1: 2}], [{1: 3}, {0: 3, 2: 3}, {1: 3}]),
    "a line, three hops": (
        LINE_OF_6, 3, True, 3,
        [{1: 2, 2: 1}, {0: 2, 2: 2}, {0: 1, 1: 2}], [{1: 4, 2: 1}, {0: 4, 2: 4}, {0: 1, 1: 4}],
    ),
    "a line, each agent alone": (LINE_OF_6, 0, True, 3, [{}, {}, {}], [{}, {}, {}]),
    "pairs that are together": (PAIRS, 5, True, 3, [{}, {}, {}], [{}, {}, {}]),
    "pairs, everybody": (PAIRS, None, True, 2, [{1: 3}, {0: 3}], [{1: 9}, {0: 9}]),
    "a hub": (HUB, 1, True, 3, [{1: 1, 2: 1}, {0: 2}, {0: 2}], [{1: 2, 2: 2}, {0: 2}, {0: 2}]),
    "rank 0 coordinates": (LINE_OF_6, 1, False, 3, [{}, {2: 1}, {1: 1}], [{}, {2: 1}, {1: 1}]),
    "one rank": (LINE_OF_6, 2, False, 1, [{}], [{}]),
    # Three agents on rank 1, of which the last has a neighbour on rank 2; four for themselves on the last two.
    "some are apart": (
        joined(8, (0, 1), (1, 2), (2, 3), (4, 5), (6, 7)), 1, False, 5,
        [{}, {2: 1}, {1: 1}, {}, {}], [{}, {2: 1}, {1: 1}, {}, {}],
    ),
}  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("name", MESSAGES)
def test_only_what_others_need_travels_and_only_those_meet_who_have_some(transfers, name):
    adjacency, radius, works, size, rows, held = MESSAGES[name]
    if size > WORLD.size:
        pytest.skip(f"needs {size} ranks")
    with sub_communicator(size) as comm:
        if comm is None:
            return
        layout = Layout(len(adjacency), size, coordinator_works=works)
        a = len(layout.agents(comm.rank))
        neighbours = Neighbours(lists(adjacency), radius, comm, layout, Clock())
        k = neighbours.ids.shape[1]
        assert neighbours.gather(np.ones((a, 3))).shape == (a, k, 3)
        assert neighbours.scatter_add(np.ones((a, k, 3))).shape == (a, 3)
        assert neighbours.transpose(np.ones((a, k, 3))).shape == (a, k, 3)
        assert neighbours.sends == rows[comm.rank]
        meet = [rank for rank in range(size) if rows[rank]]
        expected = [
            (
                len(meet),
                [table[comm.rank].get(other, 0) for other in meet],
                [table[other].get(comm.rank, 0) for other in meet],
            )
            for table in (rows, held, held)
            if comm.rank in meet
        ]
        assert transfers == expected


@pytest.mark.mpi
@pytest.mark.parametrize("size", [size for size in SIZES if size > 2])
def test_owners_exchange_while_rank_0_does_something_else(size):
    """It waits for word from each of them when they have been through."""
    ring = GRAPHS["ring"]
    with sub_communicator(size) as comm:
        if comm is None:
            return
        layout = Layout(len(ring), size)
        neighbours = Neighbours(lists(ring), 1, comm, layout, Clock())
        if comm.rank == 0:
            sums = [comm.recv(source=owner) for owner in range(1, size)]
            assert np.concatenate(sums).tolist() == [3.0**100] * len(ring)
        else:
            x = np.ones(len(layout.agents(comm.rank)))
            for _ in range(100):
                x = neighbours.gather(x).sum(axis=1)
            comm.send(x, 0)
        neighbours.close()


@pytest.mark.mpi(min_size=2)
def test_waiting_for_a_neighbour_is_polite_and_booked():
    with sub_communicator(2) as comm:
        if comm is None:
            return
        clock = Clock()
        neighbours = Neighbours(lists(GRAPHS["line"]), 1, comm, Layout(8, 2, coordinator_works=True), clock)
        neighbours.gather(np.zeros(4))
        before, begin = clock.report()[PHASES.index("wait")], time.process_time()
        if comm.rank == 0:
            time.sleep(1)
        neighbours.gather(np.zeros(4))
        used = time.process_time() - begin
        waited = clock.report()[PHASES.index("wait")] - before
        assert used < 0.02, f"{used} s of CPU in 1 s: more than 2 %"
        assert comm.rank == 0 or waited > 0.9


class CompleteAfter:
    """An MPI request that is complete after so many seconds of sleep."""

    def __init__(self, seconds: float):
        self.left = seconds
        self.looks = 0

    def Test(self):  # noqa: N802 - MPI's name
        self.looks += 1
        return self.left <= 0

    def sleep(self, seconds: float):
        self.left -= seconds


@pytest.mark.parametrize("lateness", [1.0, 0.25])
@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 3e-3, 0.02, 0.5, 7.0])
def test_a_wait_ends_late_by_a_share_of_itself_at_most(monkeypatch, seconds, lateness):
    request = CompleteAfter(seconds)
    monkeypatch.setattr(time, "sleep", request.sleep)
    wait(request, lateness=lateness)
    assert -request.left <= max(20e-6, min(lateness * seconds, 10e-3), min(seconds / 16, 50e-3))
    assert request.looks <= 12 / lateness + 80 * seconds, "each costs 30 to 100 µs"


def test_arrays_of_other_agents_or_places_are_refused():
    neighbours = Neighbours(lists(GRAPHS["line"]), 1, MPI.COMM_SELF, Layout(8, 1), Clock())
    with pytest.raises(ValueError, match=r"shape \(1, 4\) does not begin with \(8,\)"):
        neighbours.gather(np.zeros((1, 4)))
    for method in (neighbours.scatter_add, neighbours.transpose):
        with pytest.raises(ValueError, match=r"shape \(3, 8\) does not begin with \(8, 3\)"):
            method(np.zeros((3, 8)))


def test_a_graph_with_one_way_streets_is_refused():
    with pytest.raises(ValueError, match="not undirected"):
        Neighbours([[1], [0, 2], []], 1, MPI.COMM_SELF, Layout(3, 1), Clock())


def test_a_networkx_graph_says_who_the_neighbours_are():
    """Place by place in a grid of 12 × 12, at most two steps apart."""
    neighbours = Neighbours(grid_graph((12, 12)), 2, MPI.COMM_SELF, Layout(144, 1), Clock())
    assert neighbours.ids.shape == (144, 13)
    for agent, others in enumerate(neighbours.ids):
        row, column = divmod(agent, 12)
        near = [i for i in range(144) if 0 < abs(i // 12 - row) + abs(i % 12 - column) <= 2]
        assert others[others >= 0].tolist() == [agent, *near]
