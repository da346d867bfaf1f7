"""The MPI part: the same tests at 1, 2, 3 and 5 ranks, on sub-communicators of what mpirun started.

mpirun -n 5 python -m pytest --with-mpi
"""

import json
import math
import shutil
import tempfile
import time
from pathlib import Path

import bandit
import numpy as np
import pytest
from conftest import SMALL, SMALL_PLATOON, SMALL_TRAFFIC, of_mode, sub_communicator
from mpi4py import MPI
from ring import RingGlobalSimulator

from dials_mpi import cli
from dials_mpi.algorithms.registry import METHODS
from dials_mpi.analysis.equality import differences, different_datasets
from dials_mpi.errors import UserError
from dials_mpi.parallel import shared_rows
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.shared_rows import SharedRows
from dials_mpi.parallel.waiting import wait
from dials_mpi.run import run
from dials_mpi.runs import faults
from dials_mpi.runs.checkpoint import all_checkpoints, newest_whole, read_agents, read_manifest, step_of
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.training.checkpointing import Checkpointing
from dials_mpi.training.session import Session

WORLD = MPI.COMM_WORLD
SIZES = [size for size in (1, 2, 3, 5) if size <= WORLD.size]

pytestmark = pytest.mark.mpi


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


@pytest.mark.parametrize("to_owners", [True, False])
@pytest.mark.parametrize("item", [(), (3, 2)])
@pytest.mark.parametrize("members", [{0: range(2)}, {0: range(2, 5), 1: range(2)}, {2: range(1), 4: range(1, 4)}])
@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_columns_come_to_those_who_put_them_together(size, works, members, item, to_owners):
    if max(members) >= size:
        return
    with sub_communicator(size) as comm:
        if comm is None:
            return
        layout = Layout(7, size, coordinator_works=works)
        everything = np.arange(7 * 5 * math.prod(item), dtype=np.float32).reshape(7, 5, *item)
        wanted = list(layout.agents(comm.rank) if to_owners else range(0 if comm.rank else 7))
        arrays = []
        for array in (everything, (everything[..., 0] if item else everything).astype(np.uint8)):
            source = np.ascontiguousarray(array[:, members[comm.rank]]) if comm.rank in members else None
            arrays.append((source, np.full((len(wanted), *array.shape[1:]), 99, array.dtype)))
        Exchange(comm, layout, Clock()).deal_columns(arrays, members, to_owners)
        into, bytes_into = (into for _, into in arrays)
        for column in range(5):
            there = any(column in columns for columns in members.values())
            expected = everything[wanted, column] if there else np.full_like(into[:, 0], 99)
            assert np.array_equal(into[:, column], expected)
            assert np.array_equal(bytes_into[:, column], (expected[..., 0] if item else expected).astype(np.uint8))


@pytest.fixture
def machines(monkeypatch):
    """Makes the ranks pretend that they are on so many machines, turn by turn."""

    def pretend(number: int) -> None:
        monkeypatch.setattr(shared_rows, "ranks_of_this_machine", lambda comm: comm.Split(comm.rank % number))

    return pretend


@pytest.mark.parametrize("n_machines", [1, 2, 3])
@pytest.mark.parametrize("n_collectors", [1, 2, 5])
@pytest.mark.parametrize("size", SIZES)
def test_all_rows_come_to_every_collector_on_every_machine(machines, size, n_collectors, n_machines):
    with sub_communicator(size) as comm:
        if comm is None:
            return
        machines(n_machines)
        layout = Layout(7, size, n_collectors=min(size, n_collectors))
        exchange = Exchange(comm, layout, Clock())
        shared = SharedRows(comm, layout.collectors, (7, 33))
        assert (shared.rows is not None) == (comm.rank in layout.collectors)
        assert len(shared.hosts) == len({rank % n_machines for rank in layout.collectors})
        for time_ in range(3):
            everything = np.arange(7 * 33, dtype=np.float32).reshape(7, 33) + time_
            exchange.gather_rows(everything[layout.agents(comm.rank)], shared.rows, shared.hosts)
            shared.publish()
            if shared.rows is not None:
                assert np.array_equal(shared.rows, everything)
        shared.close()


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
    "half precision": ["--env=warehouse", *SMALL, "--steps=800", "--set=policy.gradient_precision=bfloat16"],
    # Feed-forward networks and Bernoulli sources, in a domain of a user's own.
    "ring": [
        "--env=ring:Ring", "--steps=1600", "--set=ppo.copies=4", "--set=ppo.rollout_length=20",
        "--set=ppo.sequence_length=1", "--set=ppo.minibatch_size=40", "--set=dataset.steps=200",
        "--set=predictor.interval=800", "--set=evaluation.interval=400",
    ],
    # Actions that are not always available, and memories.
    "masks": [
        "--env=menu:Menu", *SMALL, "--steps=800", "--set=ppo.rollout_length=20", "--set=ppo.sequence_length=10",
        "--set=ppo.minibatch_size=40", "--set=dataset.steps=100",
    ],
    "agents of two kinds": [
        "--env=menu:Mixed", *SMALL, "--steps=800", "--set=ppo.rollout_length=20", "--set=ppo.sequence_length=10",
        "--set=ppo.minibatch_size=40", "--set=dataset.steps=100",
    ],
    "masks, gs": ["--env=menu:Menu", *SMALL],
    "continuous actions": [
        "--env=aim:Aim", *SMALL, "--steps=800", "--set=ppo.rollout_length=20", "--set=ppo.sequence_length=10",
        "--set=ppo.minibatch_size=40", "--set=dataset.steps=100",
    ],
    "continuous actions, gs": ["--env=aim:Aim", *SMALL],
    "early ends": [
        "--env=cliff:Cliff", *SMALL, "--steps=800", "--set=ppo.rollout_length=20", "--set=ppo.sequence_length=10",
        "--set=ppo.minibatch_size=40", "--set=dataset.steps=100",
    ],
    # Rollouts begin in the middle of episodes.
    "early ends, gs": [
        "--env=cliff:Cliff", *SMALL, "--set=ppo.rollout_length=25", "--set=ppo.sequence_length=25",
        "--set=ppo.minibatch_size=50",
    ],
    "actions seen": ["--env=warehouse", "--set=predictor.sees_actions=true", *SMALL],
    "traffic": ["--env=traffic", *SMALL_TRAFFIC],
    "traffic over sockets": ["--env=traffic", "--set=domain.backend=traci", *SMALL_TRAFFIC],
    "traffic, gs": ["--env=traffic", *SMALL_TRAFFIC],
    "one policy for all": ["--env=warehouse", "--set=policy.shared=true", *SMALL],
    "one policy, gs": ["--env=traffic", "--set=policy.shared=true", *SMALL_TRAFFIC],
    "platoon, dppo": ["--env=platoon", *SMALL_PLATOON],
    "each vehicle its own policy, dppo": [
        "--env=platoon", *SMALL_PLATOON, "--set=policy.shared=false", "--set=dppo.target_kl=0.001",
    ],
    "critics that see everybody, dppo": ["--env=platoon", *SMALL_PLATOON, "--set=dppo.critic_radius=null"],
    # A method of a file of its own; it draws nothing but its actions.
    "bandit": ["--env=ring:Ring", "--steps=800", "--set=evaluation.interval=200", "--set=parallel.collectors=2"],
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_layout_does_not_change_the_result(shared_folder, name, monkeypatch):
    """Same seed on 1, 2, 3 and 5 ranks: datasets identical, and so are metrics and policies, to the last bit."""
    monkeypatch.setitem(METHODS, "bandit", bandit.METHOD)
    mode = next((mode for mode in reversed(METHODS) if name.endswith(mode)), "dials")
    folders = []
    for size in SIZES:
        with sub_communicator(size) as comm:
            if comm is not None:
                arguments = ["--agents=4", "--seed=5", f"--mode={mode}", *of_mode(mode, RUNS[name])]
                folders.append(train(comm, shared_folder, f"ranks{size}", *arguments))
    if WORLD.rank:
        return
    assert not any((folder / "scratch").exists() for folder in folders)
    reference, *others = folders
    assert len(read_metrics(reference)) > 6
    for other in others:
        assert (other / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
        with np.load(reference / "policies.npz") as mine, np.load(other / "policies.npz") as yours:
            assert mine.files == yours.files
            assert all(np.array_equal(mine[field], yours[field]) for field in mine.files)
        for agent in range(4) if mode == "dials" else ():
            assert different_datasets(*(f / "influence" / f"agent_{agent:04d}.h5" for f in (reference, other))) == []


UNEVEN = ["--set=dataset.steps=500", "--set=evaluation.episodes=3", "--set=evaluation.copies=2"]
"""Batches of two episodes, the last one of one."""
SHARED = {
    "warehouse": [
        (1, 1, "auto", 1), (2, 2, "true", 1), (2, 1, "false", 1), (3, 3, "true", 2),
        (5, "auto", "auto", 1), (5, 3, "false", 2), (5, 9, "false", 3),
    ],
    "untrained-dials": [(1, 1, "auto", 1), (3, 2, "true", 1), (5, 2, "false", 2)],
    "gs": [(1, 1, "auto", 1), (3, 2, "true", 2), (3, "auto", "false", 1)],
    "traffic": [(1, 1, "auto", 1), (2, 2, "true", 1), (3, 3, "false", 2)],
}  # fmt: skip
"""Ranks, collectors, whether rank 0 owns agents, and machines."""


@pytest.mark.parametrize("name", SHARED)
def test_who_collects_and_who_owns_does_not_change_the_result(shared_folder, machines, name):
    settings = ["--env=traffic", *SMALL_TRAFFIC] if name == "traffic" else ["--env=warehouse", *SMALL]
    mode = name if name in METHODS else "dials"
    folders = []
    for size, collectors, works, n_machines in SHARED[name]:
        if size > WORLD.size:
            continue
        with sub_communicator(size) as comm:
            if comm is not None:
                machines(n_machines)
                who = [f"--set=parallel.collectors={collectors}", f"--set=parallel.coordinator_works={works}"]
                arguments = ["--agents=4", "--seed=5", f"--mode={mode}", *of_mode(mode, [*settings, *UNEVEN]), *who]
                folders.append(train(comm, shared_folder, f"run{len(folders)}", *arguments))
    if WORLD.rank:
        return
    reference, *others = folders
    for other in others:
        assert differences(reference, other) == []
    evaluations = {r["step"]: r["episodes"] for r in read_metrics(reference) if r["phase"] == "evaluate"}
    collected = {"warehouse": 5, "traffic": 10}.get(name)
    assert evaluations == {0: collected or 3, 400: 3, 800: collected or 3, 1200: 3, 1600: 3}


@pytest.mark.parametrize(("name", "size"), [("warehouse", 1), ("warehouse", 3), ("traffic", 2)])
def test_a_run_stopped_at_any_boundary_loses_no_evaluation_and_has_none_twice(shared_folder, monkeypatch, name, size):
    """Each time with other collectors and owners afterwards."""
    settings = SMALL_TRAFFIC if name == "traffic" else SMALL
    arguments = [f"--env={name}", *settings, *UNEVEN, "--agents=4", "--set=checkpoint.boundary_seconds=0"]
    if size > WORLD.size:
        pytest.skip(f"needs {size} ranks")
    with sub_communicator(size) as comm:
        if comm is None:
            return
        others = [f"--set=parallel.collectors={size}", "--set=parallel.coordinator_works=true"]
        whole = train(comm, shared_folder, "whole", *arguments)
        count, code = 0, 75
        while code == 75:
            count += 1
            faults._seen.clear()
            monkeypatch.setenv("DIALS_MPI_FAULT", f"boundary:{count}:USR1")
            who = others if count % 2 else []
            parsed = cli.parser().parse_args(["--runs", str(shared_folder), f"--name=parts{count}", *arguments, *who])
            code = run(comm, parsed)
            monkeypatch.delenv("DIALS_MPI_FAULT")
            parts = shared_folder / f"parts{count}"
            if code == 75:
                who = [] if count % 2 else [f"--set=parallel.collectors={size}"]
                assert run(comm, cli.parser().parse_args([f"--resume={parts}", *who])) == 0
            wait(comm.Ibarrier())
            if comm.rank == 0:
                assert differences(whole, parts) == [], count
        assert count > 6, "two collections, and four units"


@pytest.mark.parametrize("size", [size for size in SIZES if size > 2])
def test_owners_go_on_learning_while_rank_0_evaluates(shared_folder, monkeypatch, size):
    """They meet every few milliseconds, during evaluations of a second, and the run ends as one of a single process."""
    arguments = ["--agents=4", *RUNS["ring"], "--mode=untrained-dials", "--set=evaluation.handcoded_episodes=0"]
    arguments += ["--set=checkpoint.boundary_seconds=0", "--set=parallel.coordinator_works=false"]
    events = []
    begin, step, meet = Session.begin, RingGlobalSimulator.step, Checkpointing._meet

    def noted_begin(session):
        events.clear()  # of the checks at the start
        begin(session)

    def slow_step(simulator, actions):
        events.append("step")
        time.sleep(0.025)
        return step(simulator, actions)

    def noted_meet(checkpoints, *wishes, **more):
        outcome = meet(checkpoints, *wishes, **more)
        events.append("meet")
        return outcome

    with sub_communicator(1) as comm:
        if comm is not None:
            alone = train(comm, shared_folder, "alone", *arguments)
    with sub_communicator(size) as comm:
        if comm is not None:
            monkeypatch.setattr(Session, "begin", noted_begin)
            monkeypatch.setattr(RingGlobalSimulator, "step", slow_step)
            monkeypatch.setattr(Checkpointing, "_meet", noted_meet)
            apart = train(comm, shared_folder, "apart", *arguments)
    if WORLD.rank:
        return
    assert differences(alone, apart) == []
    steps = [place for place, event in enumerate(events) if event == "step"]
    assert len(steps) == 5 * 40, "five evaluations of four batches of ten steps; the last one is beside nothing"
    for first in range(0, 4 * 40, 40):
        assert "meet" in events[steps[first] : steps[first + 39]], events


@pytest.mark.parametrize("size", [size for size in SIZES if size > 2])
def test_a_checkpoint_is_due_after_as_many_steps_also_while_rank_0_evaluates(shared_folder, monkeypatch, size):
    """Evaluations begin every 400 steps and take a second, checkpoints are due every 480; 80 are a unit."""
    arguments = ["--agents=4", *RUNS["ring"], "--mode=untrained-dials", "--set=evaluation.handcoded_episodes=0"]
    arguments += ["--set=parallel.coordinator_works=false", "--set=checkpoint.steps=480", "--set=checkpoint.keep=99"]
    step = RingGlobalSimulator.step

    def slow_step(simulator, actions):
        time.sleep(0.025)
        return step(simulator, actions)

    with sub_communicator(size) as comm:
        if comm is not None:
            monkeypatch.setattr(RingGlobalSimulator, "step", slow_step)
            folder = train(comm, shared_folder, "run", *arguments)
    if WORLD.rank:
        return
    checkpoints = all_checkpoints(folder / "checkpoints")
    best = read_manifest(checkpoints[0])["best_step"]
    assert {step_of(checkpoint) for checkpoint in checkpoints} - {best} == {480, 960, 1440, 1600} - {best}


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (5, 5, 5, 5), (5, 1, 3, 5)], ids=str)
@pytest.mark.parametrize("mode", ["dials", "untrained-dials", "gs"])
@pytest.mark.parametrize("domain", ["warehouse", "traffic"])
def test_a_stopped_run_goes_on_with_the_same_bytes(shared_folder, monkeypatch, domain, mode, sizes):
    """Stopped three times, at different boundaries, and each time resumed, on the same layout and on others."""
    settings = SMALL if domain == "warehouse" else SMALL_TRAFFIC
    arguments = [f"--env={domain}", *of_mode(mode, settings), "--agents=4", "--seed=5", f"--mode={mode}"]
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
