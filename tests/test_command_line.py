"""The program as users start it: runs, files, and every kind of bad input with its line and exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import SMALL, SMALL_TRAFFIC, of_mode, wait_for

from dials_mpi.errors import UserError
from dials_mpi.runs.clock import PHASES
from dials_mpi.runs.directory import RunDirectory, check_name
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.runs.policies import load_policies

RING = ["--set=ppo.sequence_length=50", "--set=dataset.steps=200"]
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")


def one_line(result: subprocess.CompletedProcess) -> str:
    """The program's own lines on standard error; launchers add theirs."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("dials_mpi:")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_imports_neither_torch_nor_mpi(command_line):
    check = (
        "import sys; sys.argv = ['dials_mpi', '--help']\n"
        "try:\n    import dials_mpi.__main__ as m; m.main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'mpi4py', 'h5py'} & set(sys.modules), 'heavy imports'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], env=command_line.environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for word in ("--env", "--set KEY=VALUE", "untrained-dials", "mpirun -n 5", "Exit codes"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "env: no domain given; try --env warehouse"),
        (["--env", "warehous"], "env: 'warehous' is no domain; choose warehouse"),
        (["--env", "warehouse", "--agents", "26"], "agents: 26 agents make no m×m grid; the nearest that do: 25 or 36"),
        (["--env", "warehouse", "--set", "ppo.copies=0"], "ppo.copies: 0: Input should be greater than or equal to 1"),
        (["--env", "warehouse", "--set", "ppo.lr=1"], "ppo.lr: unknown key (--set ppo.lr=1)"),
        (["--env", "warehouse", "--set", "ppo.clip"], "--set ppo.clip: write it as key=value"),
        (["--env", "warehouse", "--set", "ppo.clip=wide"], "ppo.clip: 'wide': Input should be a valid number"),
        (["--env", "warehouse", "--set", "ppo.learning_rate=-1"], "ppo.learning_rate: -1: Input should be greater"),
        (["--env", "warehouse", "--set", "dataset.steps=100"], "dataset.steps: 100 is one episode of 100 steps"),
        (["--env", "ring:Forgetful"], "domain ring: LocalSimulator: the same seeds give another episode"),
        (
            ["--env", "warehouse", "--set", "policy.initial_logits=[1, 0]"],
            "policy.initial_logits: 2 numbers for 4 actions",
        ),
        (
            ["--env", "warehouse", "--steps", "many"],
            "argument --steps: 'many' is no whole number; write it like 20000 or 2e4",
        ),
        (["--env", "warehouse", "--steps", "1.5"], "argument --steps: '1.5' is no whole number"),
        (["--env", "warehouse", "--agents", "1e400"], "argument --agents: '1e400' is no whole number"),
        (["--env", "warehouse", "--agents", ""], "argument --agents: '' is no whole number"),
        (["--env", "warehouse", "--seed=-1e0"], "seed: -1: Input should be greater than or equal to 0 (--seed)"),
        (["--env", "warehouse", "--config", ""], "argument --config: the name is empty"),
        (["--env", "warehouse", "--runs="], "argument --runs: the name is empty"),
        (["--env", "warehouse", "--max-hours", "x"], "argument --max-hours: 'x' is no number from 0 on"),
        (
            ["--env", "warehouse", "--steps", "1e18"],
            "steps: 1,000,000,000,000,000,000 steps are 22,321,428,571,429 times evaluation.interval, and at most",
        ),
        (
            ["--env", "traffic", "--set", "domain.rows=2", "--set", "domain.columns=3"],
            "agents: 4 agents are not domain.rows × domain.columns = 2 × 3 (4 is the default, in one process; give --a",
        ),
        (["--env", "warehouse", "--step", "10"], "unrecognized arguments: --step 10"),
        (["--env", "ring:Incomplete"], "env: 'ring:Incomplete': Incomplete lacks local_simulator"),
        (["--env", "ring:Uninfluenced"], "mode: dials needs a domain with influence sources; try --mode gs"),
        (
            ["--env", "traffic", "--set", "domain.edge_length=95"],
            "domain: edge_length 95 must be two or more whole",
        ),
        (["--env", "traffic", "--set", "domain.rows=2"], "domain: give both rows and columns"),
        (
            ["--env", "traffic", "--set", "domain.backend=x"],
            "domain.backend: 'x': Input should be 'libsumo' or 'traci'",
        ),
        (
            ["--env", "warehouse", "--config", "none.yaml"],
            "--config: none.yaml: cannot be read: No such file or directory; shipped are platoon, traffic, "
            "traffic_large, traffic_paper, warehouse, warehouse_paper",
        ),
        (["--env", "warehouse", "--name", "../a"], "--name: '../a' is no name for a run"),
        (["--env", "warehouse", "--name="], "--name: '' is no name for a run"),
        (["--env", "warehouse", "--name=../a", "--resume=auto"], "--name: '../a' is no name for a run"),
        (["--env", "warehouse", "--name=../a", "--dry-run"], "--name: '../a' is no name for a run"),
        (
            ["--resume=runs/x", "--runs=elsewhere"],
            "--runs: elsewhere is of no use: --resume runs/x says where the run is; leave it out",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command_line, arguments, message):
    result = command_line(*arguments)
    assert one_line(result).startswith(f"dials_mpi: {message}")
    assert result.stderr.count("\n") == 1
    assert result.returncode == 2
    assert not (command_line.folder / "runs").exists(), "nothing half-written"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--env", "warehouse", "--agents", "26"],
        ["--env", "warehouse", "--steps", "x"],
        ["--env", "ring:Forgetful", "--agents", "4"],
        ["--env", "ring:Forgetful", "--agents", "4", "--dry-run"],
    ],
)
def test_bad_input_on_many_ranks_is_still_one_line(command_line, arguments):
    result = command_line(*arguments, ranks=3)
    assert one_line(result)
    assert result.returncode == 2


def test_agents_default_to_ranks_minus_one(command_line):
    result = command_line("--env", "warehouse", ranks=3)
    assert one_line(result) == (
        "dials_mpi: agents: 2 agents make no m×m grid; the nearest that do: 1 or 4 (2 is the default, ranks - 1; give "
        "--agents)"
    )
    assert result.returncode == 2


def test_communicator_of_another_size_than_launched_is_refused(command_line):
    result = command_line("--env", "warehouse", OMPI_COMM_WORLD_SIZE="26", OMPI_COMM_WORLD_RANK="0")
    assert "the launcher started 26 processes (OMPI_COMM_WORLD_SIZE) but MPI connects 1" in one_line(result)
    assert result.returncode == 2


def test_existing_run_directory_is_refused_and_untouched(command_line):
    folder = command_line.folder / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("precious")
    result = command_line("--env", "warehouse", "--name", "mine")
    assert one_line(result).startswith("dials_mpi: runs/mine: this run directory exists already; choose another --name")
    assert result.returncode == 2
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "precious"


def test_a_run_that_is_called_like_a_half_made_one_is_left_alone(command_line):
    folder = command_line.folder / "runs" / "a.new"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("precious")
    result = command_line("--env=warehouse", "--name=a", "--set=checkpoint.boundary_seconds=0", "--max-hours=0", *SMALL)
    assert result.returncode == 75, result.stderr
    assert (folder / "metrics.jsonl").read_text() == "precious"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "a.new"], "nothing half-made is left"


def test_a_run_directory_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    monkeypatch.setattr("dials_mpi.runs.directory.lock", Path.read_text)  # of a directory: an error as from a full disk
    with pytest.raises(UserError, match=rf"{runs}: cannot be written \(Is a directory\); choose another --runs folder"):
        RunDirectory(runs / "a", "env: warehouse\n", {})
    assert list(runs.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written \(File exists\)"):
        RunDirectory(tmp_path / "file" / "a", "env: warehouse\n", {})


def test_a_run_directory_is_open_to_whom_the_mode_mask_lets_in(tmp_path):
    before = os.umask(0o027)
    try:
        RunDirectory(tmp_path / "runs" / "a", "env: warehouse\n", {})
    finally:
        os.umask(before)
    for folder in ("runs", "runs/a"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o750, folder


@pytest.mark.parametrize("or_next", [False, True])
def test_of_runs_made_at_once_each_has_its_own_directory(tmp_path, or_next):
    """None is half-made, whoever comes first; one that was named is refused to all others."""
    path, several = tmp_path / "runs" / "a", 8
    together = threading.Barrier(several)

    def make(number):
        together.wait()
        try:
            return RunDirectory(path, f"seed: {number}\n", {"number": number}, or_next).path
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(several) as pool:
        made = list(pool.map(make, range(several)))
    names = [f"a-{number}" if number > 1 else "a" for number in range(1, several + 1)] if or_next else ["a"]
    assert sorted(folder.name for folder in path.parent.iterdir()) == names
    mine = {folder: number for number, folder in enumerate(made) if isinstance(folder, Path)}
    assert sorted(folder.name for folder in mine) == names
    for folder, number in mine.items():
        assert (folder / "config.yaml").read_text() == f"seed: {number}\n"
        assert json.loads((folder / "run.json").read_text())["number"] == number
    refused = f"{path}: this run directory exists already; choose another --name, or move it away"
    assert [text for text in made if isinstance(text, str)] == ([] if or_next else [refused] * (several - 1))


def test_a_new_run_takes_no_name_that_is_there(tmp_path):
    """Not even that of an empty directory, which a renaming would replace, or of a file or a broken link."""
    for kind in ("folder", "file", "link"):
        path = tmp_path / kind / "a"
        path.parent.mkdir()
        {"folder": path.mkdir, "file": path.touch, "link": lambda path=path: path.symlink_to("nowhere")}[kind]()
        with pytest.raises(UserError, match="this run directory exists already"):
            RunDirectory(path, "", {})
        assert RunDirectory(path, "", {}, or_next=True).path == path.with_name("a-2")
        assert RunDirectory(path, "", {}, or_next=True).path == path.with_name("a-3")


def test_two_runs_without_names_in_one_second_are_both_kept(command_line):
    """The clock stands still: the name is from a second that others have, too."""
    (command_line.folder / "sitecustomize.py").write_text(
        "import time\nstrftime = time.strftime\n"
        "time.strftime = lambda form, *more: '20260101-000000' if form == '%Y%m%d-%H%M%S' else strftime(form, *more)\n"
    )
    command_line.environment["PYTHONPATH"] += f":{command_line.folder}"
    arguments = ["--env=ring:Ring", "--agents=2", *RING, "--set=checkpoint.boundary_seconds=0", "--max-hours=0"]
    name = "ring-2-dials-seed0-20260101-000000"
    for expected in (name, f"{name}-2"):
        result = command_line(*arguments)
        assert result.returncode == 75, result.stderr
        assert result.stdout.splitlines()[-1] == f"results in runs/{expected}"
        assert f"go on with --resume runs/{expected} --env ring:Ring\n" in result.stdout
    assert sorted(path.name for path in (command_line.folder / "runs").iterdir()) == [name, f"{name}-2"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "+x", "a/b", "/a", "../a", "a b", "a\nb", "a\tb", "a\x1b[31m", "a\\b", "a$b", "ä",
     "a*", "~", "'a'", "a" * 201],
)  # fmt: skip
def test_what_no_run_can_be_called_is_named_with_the_rule(name):
    with pytest.raises(UserError) as error:
        check_name(name, "--name:")
    assert str(error.value) == (
        f"--name: {name!r} is no name for a run: one has up to 200 of a-z, A-Z, 0-9 and ._+=,@-, and begins with a "
        "letter, a digit or _"
    )


@pytest.mark.parametrize(
    "name",
    ["warehouse_2x2_17", "NAME_F100000_seed3", "warehouse-4-dials-seed0-20260101-000000-2", "a", "7", "_", "a.new",
     "a..b", "lr=1e-3,clip=0.2", "x@y+z", "a" * 200],
)  # fmt: skip
def test_what_runs_are_called_is_accepted(name):
    check_name(name, "--name:")


def test_a_domain_whose_name_makes_none_asks_for_one(command_line):
    (command_line.folder / "mine.py").write_text("from ring import Ring\nclass Mine(Ring):\n    name = '../mine'\n")
    arguments = ["--env=mine:Mine", "--agents=2", *RING, "--set=checkpoint.boundary_seconds=0", "--max-hours=0"]
    result = command_line(*arguments)
    assert result.returncode == 2
    line = one_line(result)
    assert line.startswith("dials_mpi: --name: none is given, and for mine:Mine '../mine-2-dials-seed0-")
    assert "' is no name for a run: one has" in line
    assert not (command_line.folder / "runs").exists()
    assert not (command_line.folder / "mine").exists()
    assert command_line(*arguments, "--name=r").returncode == 75
    assert command_line("--resume=runs/r", "--env=mine:Mine", "--max-hours=0").returncode == 75


def test_read_only_folder_is_refused(command_line):
    command_line.folder.chmod(0o555)
    result = command_line("--env", "warehouse", "--name", "mine")
    assert one_line(result) == ("dials_mpi: runs: cannot be written (Permission denied); choose another --runs folder")
    assert result.returncode == 2


@pytest.mark.parametrize("mode", ["dials", "untrained-dials", "gs"])
def test_a_run_leaves_a_complete_directory(command_line, mode):
    result = command_line("--env", "warehouse", "--mode", mode, "--name", "run", "--seed", "3", *of_mode(mode, SMALL))
    assert result.returncode == 0, result.stderr
    folder = command_line.folder / "runs" / "run"
    configuration = yaml.safe_load((folder / "config.yaml").read_text())
    assert configuration["mode"] == mode
    assert configuration["ppo"]["gae_lambda"] == 0.95, "complete, not only what was given"

    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == "finished"
    assert (facts["ranks"], facts["seed"]) == (1, 3)
    assert facts["mpi_library"]
    assert set(facts["versions"]) >= {"python", "torch", "mpi4py", "numpy"}
    assert set(facts["summary"]["phases"]) == set(PHASES)
    assert facts["summary"]["agent_steps"] == 4 * 1600
    assert len(facts["summary"]["memory_mib_per_rank"]) == 1

    metrics = read_metrics(folder)
    evaluations = [record for record in metrics if record["phase"] == "evaluate"]
    assert [record["step"] for record in evaluations] == [0, 400, 800, 1200, 1600]
    assert all(len(record["per_agent"]["mean_return"]) == 4 for record in evaluations)
    assert [record["controller"] for record in metrics if record["phase"] == "reference"] == ["closest", "oldest"]
    learned = [record for record in metrics if record["phase"] == "learn"]
    assert {"approx_kl", "clip_fraction", "explained_variance", "entropy"} <= set(learned[0]["per_agent"])
    times = [json.loads(line)["seconds"] for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert len(times) == len(metrics)
    assert times == sorted(times)

    trainings = [record for record in metrics if record["phase"] == "aip"]
    files = sorted((folder / "influence").glob("*"))
    if mode == "dials":
        assert [record["step"] for record in trainings] == [0, 800]
        assert [file.name for file in files] == [f"agent_{agent:04d}.h5" for agent in range(4)]
        with h5py.File(files[2]) as file:
            assert file["round_0001"].attrs["step"] == 800
            assert file["round_0001/history"].shape == (400, 37)
            after = file["round_0001"].attrs["cross_entropy_after"]
        assert trainings[1]["per_agent"]["cross_entropy_after"][2] == pytest.approx(float(after), abs=1e-6)
    else:
        assert trainings == []
        assert files == []
    step, rows = load_policies(folder / "policies.npz")
    assert step == 1600
    assert rows.keys() == {"policy"}
    assert rows["policy"].shape[0] == 4
    assert np.isfinite(rows["policy"]).all()
    for phase in ("simulate", "ppo_update", "evaluate", "peak memory per rank", "per second and core"):
        assert phase in result.stdout
    assert "rounded up" not in result.stdout


def test_steps_that_are_rounded_up_are_said_once_at_the_start(command_line):
    odd = ["--steps=9e2", "--set=evaluation.interval=4.1e2"]
    result = command_line(
        "--env=warehouse", "--agents=4", "--name=odd", "--mode=gs", *of_mode("gs", SMALL), *odd, ranks=2
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "rounded up" in line]
    assert lines == [
        "rounded up: steps 900 → 1,200, evaluation.interval 410 → 800, to multiples of 400 steps per agent: whole "
        "rollouts of 50 steps in 4 copies, and whole episodes of 100 steps"
    ]
    metrics = read_metrics(command_line.folder / "runs" / "odd")
    assert [record["step"] for record in metrics if record["phase"] == "evaluate"] == [0, 800, 1200]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (["libmpi.so.40: cannot open shared object file: No such file or directory"], 0),
        (
            [
                "cannot load MPI library",
                "/opt/lib/libmpi.so: cannot open shared object file: No such file or directory",
                "libmpi.so.12: cannot open shared object file: No such file or directory",
            ],
            2,
        ),
        (
            [
                "cannot load MPI library",
                "/opt/lib/libmpi.so: cannot open shared object file: No such file or directory",
                "libucp.so.0: cannot open shared object file: No such file or directory",
                "libmpi.so.40: cannot open shared object file: No such file or directory",
            ],
            2,
        ),
    ],
)
def test_why_no_mpi_library_loads_is_said(command_line, lines, cause):
    """The texts of mpi4py and of the loader: what it tried, in order, and why each did not do."""
    (command_line.folder / "mpi4py").mkdir()
    error = "\n".join(lines)
    (command_line.folder / "mpi4py" / "__init__.py").write_text(f"raise RuntimeError({error!r})\n")
    command_line.environment["PYTHONPATH"] = f"{command_line.folder}:{command_line.environment['PYTHONPATH']}"
    result = command_line("--env=warehouse")
    assert one_line(result) == (
        f"dials_mpi: no MPI library to be loaded ({lines[cause]}); load your cluster's MPI module, or "
        "pip install 'dials_mpi[mpi]' for one from a wheel"
    )
    assert result.stderr.count("\n") == 1
    assert result.returncode == 2


def test_a_users_own_domain_with_feed_forward_networks_and_bernoulli_sources(command_line):
    result = command_line(
        "--env=ring:Ring", "--agents=3", "--name=r", "--steps=2000", "--set=ppo.sequence_length=1",
        "--set=ppo.rollout_length=20", "--set=ppo.minibatch_size=80", "--set=ppo.copies=4",
        "--set=evaluation.interval=1000", "--set=dataset.steps=200", ranks=2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = read_metrics(command_line.folder / "runs" / "r")
    assert metrics[0]["controller"] == "copy"
    assert metrics[0]["mean_return"] == 10
    assert next(record for record in metrics if record["phase"] == "aip")["cross_entropy_before"] == pytest.approx(
        np.log(2), abs=0.01
    )


@pytest.mark.parametrize(("ranks", "threads"), [(0, 1), (0, 2), (3, 1)])
def test_a_run_is_charged_for_the_cores_that_it_can_use(command_line, ranks, threads):
    """One thread per rank: a single process has nothing of a second core."""
    result = command_line(
        "--env=ring:Ring", "--agents=4", "--name=c", *RING, "--steps=800", ranks=ranks, OMP_NUM_THREADS=str(threads)
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((command_line.folder / "runs" / "c" / "run.json").read_text())["summary"]
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = min(here, max(1, ranks) * threads)
    assert summary["core_hours"] == pytest.approx(used * summary["wall_seconds"] / 3600)
    assert summary["agent_steps_per_second_and_core"] == pytest.approx(summary["agent_steps_per_second"] / used)


def test_memory_stays_small_on_many_ranks(command_line):
    """The default configuration's networks and datasets, a short run."""
    result = command_line("--env=warehouse", "--name=m", "--steps=2400", ranks=5)
    assert result.returncode == 0, result.stderr
    summary = json.loads((command_line.folder / "runs" / "m" / "run.json").read_text())["summary"]
    assert len(summary["memory_mib_per_rank"]) == 5
    assert max(summary["memory_mib_per_rank"]) < 350


def test_ranks_that_wait_leave_their_cores_to_others(command_line):
    """Simulators that sleep, so that how long the ranks wait depends on nothing else."""
    result = command_line(
        "--env=ring:Slow", "--agents=4", "--name=w", *RING, "--steps=2000", "--set=dataset.steps=800",
        "--set=dataset.copies=4", ranks=3,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    summary = json.loads((command_line.folder / "runs" / "w" / "run.json").read_text())["summary"]
    waited = summary["waiting"]
    assert waited["collect"]["max_seconds"] > 3  # the owners for rank 0
    assert waited["learn"]["max_seconds"] > 3  # rank 0 for the owners
    assert summary["waiting_cpu_share"] < 0.02


@pytest.mark.parametrize("broken", ["ring:FailsOnOneRank", "ring:ExitsOnOneRank"])
def test_a_rank_that_fails_alone_at_the_start_ends_the_job(command_line, broken):
    result = command_line("--env", broken, "--agents", "4", ranks=3)
    assert "rank 1 failed in phase start" in one_line(result)
    assert result.returncode not in (0, 2)


@pytest.mark.parametrize("sees_actions", ["false", "true"])
def test_dry_run_prints_the_plan_and_writes_nothing(command_line, sees_actions):
    more = [f"--set=predictor.sees_actions={sees_actions}", *SMALL, "--steps=1.5e3"]
    result = command_line("--env", "warehouse", "--agents", "9", "--dry-run", *more, ranks=3)
    assert result.returncode == 0, result.stderr
    plan = ("border: scripted", "keeps what the interface promises", "3 ranks: rank 0", "memory:", "time: about")
    phases = ("collecting datasets", "AIP training", "updates of the largest block", "evaluation")
    for text in (*plan, *phases, "of the time of all cores is learning", "what limits:"):
        assert text in result.stdout
    assert "steps: 1500\n" in result.stdout
    assert result.stdout.count("rounded up: steps 1,500 → 1,600, to multiples of 400 steps per agent: whole") == 1
    assert list(command_line.folder.iterdir()) == []


def test_a_dry_run_says_what_a_run_with_its_options_would_do(command_line):
    arguments = ["--env=ring:Ring", "--agents=2", *RING]
    dry = command_line(*arguments, "--dry-run", "--runs=there", "--name=r", "--max-hours=1.5")
    assert dry.returncode == 0, dry.stderr
    assert "would write there/r\nwould stop with a checkpoint after 1.5 h\n" in dry.stdout
    assert list(command_line.folder.iterdir()) == []

    assert command_line(*arguments, "--name=r", "--set=checkpoint.boundary_seconds=0", "--max-hours=0").returncode == 75
    before = {file: file.read_bytes() for file in command_line.folder.rglob("*") if file.is_file()}
    dry = command_line("--resume=runs/r", "--env=ring:Ring", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "would go on with runs/r from step 0\n" in dry.stdout
    dry = command_line(*arguments, "--name=r", "--dry-run")
    assert dry.returncode == 2
    assert one_line(dry).startswith("dials_mpi: runs/r: this run directory exists already")
    assert before == {file: file.read_bytes() for file in command_line.folder.rglob("*") if file.is_file()}


def test_an_exception_on_one_rank_ends_the_job_with_one_message(command_line):
    result = command_line("--env", "ring:Failing", "--agents", "3", "--name", "f", *RING, ranks=3)
    line = one_line(result)
    assert "rank 2 failed in phase simulate: RuntimeError: the conveyor belt is stuck" in line
    assert "failure_rank_2.txt" in line
    assert result.returncode not in (0, 2)
    folder = command_line.folder / "runs" / "f"
    assert "conveyor belt" in (folder / "failure_rank_2.txt").read_text()
    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == "failed"
    assert facts["failure"].startswith("rank 2 failed in phase simulate")
    assert read_metrics(folder)[0]["phase"] == "reference", "what was saved stays readable"


BREAKS = [
    "--env=ring:Breaks",
    "--agents=3",
    "--name=b",
    "--steps=400",
    *RING,
    "--set=dataset.copies=2",
    "--set=ppo.minibatch_size=100",
]
BREAKS += [f"--set=evaluation.{name}=2" for name in ("episodes", "handcoded_episodes")]


@pytest.mark.parametrize(
    ("ranks", "phase", "simulator", "what", "settings"),
    [
        (0, "evaluate", "GlobalSimulator", "reward nan", ["evaluation.handcoded_episodes=12", "evaluation.copies=12"]),
        (0, "collect", "GlobalSimulator", "observation inf", ["dataset.copies=12"]),
        (
            0,
            "evaluate",
            "GlobalSimulator",
            "observation nan",
            ["evaluation.episodes=12", "evaluation.copies=12", "mode=untrained-dials"],
        ),
        (0, "simulate", "GlobalSimulator", "reward inf", ["ppo.copies=12", "mode=gs"]),
        (0, "simulate", "LocalSimulator", "observation nan", ["ppo.copies=12", "mode=untrained-dials"]),
        (0, "simulate", "LocalSimulator", "reward nan", ["ppo.copies=12"]),
        (3, "simulate", "LocalSimulator", "reward nan", ["ppo.copies=12"]),
    ],
)
def test_what_is_not_finite_is_named_where_it_comes_in(command_line, ranks, phase, simulator, what, settings):
    kind, value = what.split()
    settings = [*settings, f"domain.simulator={simulator[:-9].lower()}", f"domain.what={kind}", f"domain.value={value}"]
    mode = next((setting.removeprefix("mode=") for setting in settings if setting.startswith("mode=")), "dials")
    result = command_line(*of_mode(mode, BREAKS), *(f"--set={setting}" for setting in settings), ranks=ranks)
    expected = (
        rf"dials_mpi: rank {2 if ranks else 0} failed in phase {phase}: FloatingPointError: domain ring: {simulator}: "
        rf"{what} at step 7, agent 2, copy 10 is not finite \(.*values\.py:\d+\); traceback in .*failure_rank_\d\.txt"
    )
    assert re.fullmatch(expected, one_line(result)), one_line(result)
    if not ranks:
        assert result.returncode == 1


@pytest.mark.parametrize("backend", ["libsumo", "traci"])
def test_traffic_on_ranks_of_their_own(command_line, backend):
    """Every rank has a SUMO of its own, and none is left afterwards."""
    result = command_line(
        "--env=traffic", "--name=t", f"--set=domain.backend={backend}", *SMALL_TRAFFIC, ranks=5
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    metrics = read_metrics(command_line.folder / "runs" / "t")
    assert [record["controller"] for record in metrics if record["phase"] == "reference"] == ["actuated", "fixed-time"]
    assert [record["round"] for record in metrics if record["phase"] == "aip"] == [0, 1]
    assert not sumos(command_line.folder)


def rank_processes(job):
    """The Python processes of a running `mpirun`, by rank."""
    ranks = {}
    for child in psutil.Process(job.pid).children(recursive=True):
        rank = next((child.environ()[name] for name in RANK_VARIABLES if name in child.environ()), None)
        if rank is not None and child.name() != "sumo":
            ranks[int(rank)] = child
    return ranks


def sumos(folder):
    """SUMO processes on networks of a run in `folder`."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "sumo" and any(str(folder) in word for word in process.info["cmdline"] or ())
    ]


@pytest.mark.parametrize("victim", [0, 2])
def test_no_sumo_outlives_a_killed_job(command_line, victim):
    process = command_line.start(
        "--env=traffic", "--agents=4", "--name=k", "--set=domain.backend=traci", *SMALL_TRAFFIC,
        "--steps=10000000", "--set=evaluation.interval=10000000", "--set=predictor.interval=10000000", ranks=3,
    )  # fmt: skip
    wait_for(lambda: len(sumos(command_line.folder)) >= 2, process)  # of the owners
    rank_processes(process)[victim].send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_until_gone = time.monotonic() + 20
    while sumos(command_line.folder) and time.monotonic() < wait_until_gone:
        time.sleep(0.1)
    assert not sumos(command_line.folder)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_the_job(command_line, victim):
    process = command_line.start("--env", "warehouse", "--agents", "4", "--name", "k", "--steps", "100000000", ranks=3)
    metrics = command_line.folder / "runs" / "k" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and "evaluate" in metrics.read_text(), process)
    ranks = rank_processes(process)
    assert sorted(ranks) == [0, 1, 2]
    ranks[victim].send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ranks.values()), "nobody is left over"
    assert read_metrics(command_line.folder / "runs" / "k")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("ranks", [0, 3])
def test_no_gpu_is_one_line(command_line, ranks):
    result = command_line("--env=warehouse", "--device=cuda", ranks=ranks)
    assert result.returncode == 2
    assert re.match(r"dials_mpi: --device cuda: torch \S+ finds no GPU on \S+; install a build", one_line(result))
    assert not (command_line.folder / "runs").exists()
