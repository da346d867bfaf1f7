"""The MPI part: the same tests at 1, 2, 3 and 5 ranks, on sub-communicators of what mpirun started.

mpirun -n 5 python -m pytest --with-mpi
"""

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, SMALL_TRAFFIC
from mpi4py import MPI

from dials_mpi import cli
from dials_mpi.config import MODES
from dials_mpi.errors import UserError
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import wait
from dials_mpi.run import run
from dials_mpi.runs import faults
from dials_mpi.runs.checkpoint import newest_whole, read_agents
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.equality import different_datasets
from dials_mpi.runs.metrics import read_metrics

WORLD = MPI.COMM_WORLD
SIZES = [size for size in (1, 2, 3, 5) if size <= WORLD.size]

pytestmark = pytest.mark.mpi


@contextlib.contextmanager
def sub_communicator(size: int):
    """The first `size` ranks of the world, None on the others; all meet again at the end."""
    comm = WORLD.Split(0 if WORLD.rank < size else MPI.UNDEFINED, WORLD.rank)
    yield None if comm == MPI.COMM_NULL else comm
    wait(WORLD.Ibarrier())  # not after a failure, which ends all ranks
    if comm != MPI.COMM_NULL:
        comm.Free()


@pytest.fixture
def shared_folder():
    """A folder that all ranks see."""
    path = WORLD.bcast(tempfile.mkdtemp(prefix="dials_mpi_test_") if WORLD.rank == 0 else None)
    yield Path(path)
    WORLD.barrier()
    if WORLD.rank == 0:
        shutil.rmtree(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (300, 41, 7)])
@pytest.mark.parametrize("n_agents", [5, 9])
@pytest.mark.parametrize("size", SIZES)
def test_rows_come_to_their_owners_and_back(size, n_agents, shape, dtype):
    with sub_communicator(size) as comm:
        if comm is None:
            return
        layout = Layout(n_agents, size)
        exchange = Exchange(comm, layout, Clock())
        everything = np.arange(n_agents * int(np.prod(shape))).astype(dtype).reshape(n_agents, *shape)
        mine = np.zeros((len(layout.agents(comm.rank)), *shape), dtype)
        exchange.scatter_rows(everything if comm.rank == 0 else None, mine)
        assert np.array_equal(mine, everything[list(layout.agents(comm.rank))])
        back = np.zeros_like(everything) if comm.rank == 0 else None
        exchange.gather_rows(mine, back)
        if comm.rank == 0:
            assert np.array_equal(back, everything)


@pytest.mark.parametrize("size", SIZES)
def test_reports_are_gathered_in_the_order_of_ranks(size):
    with sub_communicator(size) as comm:
        if comm is None:
            return
        reports = Exchange(comm, Layout(4, size), Clock()).gather_report(np.array([comm.rank, 0.5]))
        if comm.rank == 0:
            assert reports.tolist() == [[rank, 0.5] for rank in range(size)]
        else:
            assert reports is None


@pytest.mark.parametrize("size", SIZES)
def test_progress_reaches_rank_0_while_it_waits(size):
    with sub_communicator(size) as comm:
        if comm is None:
            return
        seen = []
        exchange = Exchange(comm, Layout(4, size), Clock())
        exchange.on_progress = seen.append
        for progress in (7, 8):  # the second one at once after the first: too soon to be sent
            if comm.rank:
                exchange.post_progress(progress)
        time.sleep(0.2 if comm.rank else 0)
        exchange.barrier()
        exchange.close()
        assert seen == ([7] if comm.rank == 0 and size > 1 else [])


def test_arrays_that_are_not_contiguous_are_refused():
    exchange = Exchange(MPI.COMM_SELF, Layout(4, 1), Clock())
    with pytest.raises(ValueError, match="contiguous"):
        exchange.gather_rows(np.zeros((4, 6))[:, ::2], np.zeros((4, 3)))


@pytest.mark.mpi(min_size=2)
def test_waiting_costs_next_to_nothing():
    """A rank that waits for another one uses hardly any processor time."""
    if WORLD.rank == 0:
        time.sleep(2)
    begin = time.process_time()
    wait(WORLD.Ibarrier())
    used = time.process_time() - begin
    assert used < 0.04, f"{used} s of CPU in a wait of 2 s: more than 2 %"


def train(comm, folder: Path, name: str, *arguments: str) -> Path:
    parsed = cli.parser().parse_args(["--runs", str(folder), "--name", name, *arguments])
    assert run(comm, parsed) == 0
    return folder / name


RUNS = {
    "dials": ["--env=warehouse", *SMALL],
    "untrained-dials": ["--env=warehouse", *SMALL],
    "gs": ["--env=warehouse", *SMALL],
    # One environment per agent, short sequences, another activation: the published way.
    "published": [
        "--env=warehouse", *SMALL, "--steps=800", "--set=ppo.copies=1", "--set=ppo.rollout_length=40",
        "--set=ppo.sequence_length=8", "--set=ppo.minibatch_size=8", "--set=policy.activation=relu",
    ],
    "odd number of copies": [
        "--env=warehouse", *SMALL, "--set=ppo.copies=3", "--set=ppo.minibatch_size=50",
        "--set=policy.recurrent_size=64",
    ],
    # Feed-forward networks and Bernoulli sources, in a domain of a user's own.
    "ring": [
        "--env=ring:Ring", "--steps=1600", "--set=ppo.copies=4", "--set=ppo.rollout_length=20",
        "--set=ppo.sequence_length=1", "--set=ppo.minibatch_size=40", "--set=dataset.steps=200",
        "--set=predictor.interval=800", "--set=evaluation.interval=400",
    ],
    "traffic": ["--env=traffic", *SMALL_TRAFFIC],
    "traffic over sockets": ["--env=traffic", "--set=domain.backend=traci", *SMALL_TRAFFIC],
    "traffic, gs": ["--env=traffic", *SMALL_TRAFFIC],
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_layout_does_not_change_the_result(shared_folder, name):
    """Same seed on 1, 2, 3 and 5 ranks: datasets identical, and so are metrics and policies, to the last bit."""
    mode = next((mode for mode in reversed(MODES) if name.endswith(mode)), "dials")
    folders = []
    for size in SIZES:
        with sub_communicator(size) as comm:
            if comm is not None:
                arguments = ["--agents=4", "--seed=5", f"--mode={mode}", *RUNS[name]]
                folders.append(train(comm, shared_folder, f"ranks{size}", *arguments))
    if WORLD.rank:
        return
    assert not any((folder / "scratch").exists() for folder in folders)
    reference, *others = folders
    assert len(read_metrics(reference)) > 6
    for other in others:
        assert (other / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
        with np.load(reference / "policies.npz") as mine, np.load(other / "policies.npz") as yours:
            assert np.array_equal(mine["parameters"], yours["parameters"])
        for agent in range(4) if mode == "dials" else ():
            assert different_datasets(*(f / "influence" / f"agent_{agent:04d}.h5" for f in (reference, other))) == []


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (5, 5, 5, 5), (5, 1, 3, 5)], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("domain", ["warehouse", "traffic"])
def test_a_stopped_run_goes_on_with_the_same_bytes(shared_folder, monkeypatch, domain, mode, sizes):
    """Stopped three times, at different boundaries, and each time resumed, on the same layout and on others."""
    settings = SMALL if domain == "warehouse" else SMALL_TRAFFIC
    arguments = [f"--env={domain}", *settings, "--agents=4", "--seed=5", f"--mode={mode}"]
    arguments.append("--set=checkpoint.boundary_seconds=0")
    # Beside the boundaries between units there is one after every batch of a collection: two or four of them.
    count = 1 if mode != "dials" else {"warehouse": 3, "traffic": 5}[domain]
    with sub_communicator(1) as comm:
        if comm is not None:
            whole = train(comm, shared_folder, "whole", *arguments)
    if max(sizes) > WORLD.size:
        pytest.skip(f"needs {max(sizes)} ranks")
    last = len(sizes) - 1
    for start, size in enumerate(sizes):
        with sub_communicator(size) as comm:
            if comm is not None:
                faults._seen.clear()
                if start < last:
                    monkeypatch.setenv("DIALS_MPI_FAULT", f"boundary:{count}:USR1")
                else:
                    monkeypatch.delenv("DIALS_MPI_FAULT")
                more = ["--runs", str(shared_folder), "--name=parts", *arguments]
                if start:
                    more = ["--resume", str(shared_folder / "parts")]
                assert run(comm, cli.parser().parse_args(more)) == (75 if start < last else 0)
    if WORLD.rank:
        return
    parts = shared_folder / "parts"
    assert len({session["step"] for session in json.loads((parts / "run.json").read_text())["resumed"]}) == last
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    with np.load(whole / "policies.npz") as mine, np.load(parts / "policies.npz") as yours:
        assert np.array_equal(mine["parameters"], yours["parameters"])
    ends = [newest_whole(folder / "checkpoints") for folder in (whole, parts)]
    rows = [read_agents(checkpoint, manifest, range(4)) for checkpoint, manifest, _ in ends]
    assert list(rows[0]) == list(rows[1])
    for key in rows[0]:
        assert np.array_equal(rows[0][key], rows[1][key]), key
    for agent in range(4) if mode == "dials" else ():
        assert different_datasets(*(f / "influence" / f"agent_{agent:04d}.h5" for f in (whole, parts))) == []


@pytest.mark.parametrize("size", SIZES)
def test_bad_input_is_raised_on_all_ranks_alike(shared_folder, size):
    with sub_communicator(size) as comm:
        if comm is None:
            return
        with pytest.raises(UserError, match="26 agents make no m×m grid"):
            train(comm, shared_folder, "never", "--env", "warehouse", "--agents", "26")
        assert not (shared_folder / "never").exists()
