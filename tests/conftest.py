"""Shared by all tests: one thread, small configurations, sub-communicators, the command line as users call it."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dials_mpi.algorithms.registry import METHODS
from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

TESTS = Path(__file__).parent
# Variables by which a launcher tells a process its place; a program started from a test is not part of the test's job.
_LAUNCHER_PREFIXES = ("PMI", "OMPI_COMM_WORLD", "HYDRA", "MPI_LOCAL", "SLURM")

SMALL = [
    "--steps=1600",
    "--set=ppo.copies=4",
    "--set=ppo.rollout_length=50",
    "--set=ppo.sequence_length=50",
    "--set=ppo.minibatch_size=100",
    "--set=predictor.interval=800",
    "--set=predictor.epochs=2",
    "--set=dataset.steps=400",
    "--set=dataset.copies=2",
    "--set=policy.recurrent_size=32",
    "--set=policy.hidden_sizes=[32]",
    "--set=predictor.recurrent_size=32",
    "--set=evaluation.interval=400",
    "--set=evaluation.episodes=2",
    "--set=evaluation.handcoded_episodes=2",
]
"""A whole run in seconds: two AIP trainings, four evaluations."""

SMALL_TRAFFIC = [
    *SMALL,
    "--set=domain.horizon=50",
    "--set=ppo.sequence_length=1",
    "--set=policy.recurrent_size=0",
    "--set=predictor.recurrent_size=0",
    "--set=predictor.minibatch_size=50",
]


SMALL_PLATOON = [
    "--mode=dppo",
    "--steps=240",
    "--set=domain.horizon=40",
    "--set=dppo.minibatch_size=20",
    "--set=evaluation.interval=80",
    "--set=evaluation.episodes=3",
    "--set=evaluation.copies=2",
    "--set=evaluation.handcoded_episodes=2",
]
"""Three updates of two episodes."""


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request) -> str:
    """Each device that networks can learn on here."""
    return request.param


def of_mode(mode: str, settings: Sequence[str]) -> list[str]:
    """Arguments without settings of sections that the mode does not have."""
    foreign = tuple(f"--set={s}." for m in METHODS.values() for s in m.sections if s not in METHODS[mode].sections)
    return [argument for argument in settings if not argument.startswith(foreign)]


def values_of_mode(mode: str, values: dict) -> dict:
    """The same of a layer of a configuration."""
    foreign = {section for method in METHODS.values() for section in method.sections} - METHODS[mode].sections.keys()
    return {key: value for key, value in values.items() if key not in foreign}


class CommandLine:
    """Runs `python -m dials_mpi …` in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_PREFIXES)
        }
        self.environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])

    def start(self, *arguments: str, ranks: int = 0, **environment: str) -> subprocess.Popen:
        """Starts the program, under mpirun if `ranks` is given; output is captured as text."""
        command = [sys.executable, "-m", "dials_mpi", *arguments]
        if ranks:
            command = [mpirun(), "-n", str(ranks), *command]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            preexec_fn=obey_file_permissions,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, ranks: int = 0, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, ranks=ranks, **environment)
        try:
            out, error = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def obey_file_permissions() -> None:
    """Lets even root, whom containers and CI run as, fail to write where its mode bits forbid it."""
    if sys.platform == "linux":
        pr_capbset_drop, cap_dac_override = 24, 1
        ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override)


def mpirun() -> str:
    """The launcher beside this Python (MPI from a wheel), else the one on PATH. Tests that need it fail without one."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "no mpirun: install an MPI, for example with pip install 'dials_mpi[mpi]'"
    return found


@pytest.fixture
def command_line(tmp_path) -> CommandLine:
    return CommandLine(tmp_path)


def run_here(folder: Path, *arguments: str) -> Path:
    """A whole run on one rank of this process, where a test can watch it; returns its directory."""
    from mpi4py import MPI

    from dials_mpi import cli
    from dials_mpi.run import run

    class Alone(MPI.Intracomm):
        def Abort(self, code):  # noqa: N802 - the exception goes on to the test instead
            pass

    parsed = cli.parser().parse_args([*arguments, f"--runs={folder}", "--name=run"])
    assert run(Alone(MPI.COMM_SELF), parsed) == 0
    return folder / "run"


def without_packages(folder: Path, *names: str) -> str:
    """A PYTHONPATH under which the packages cannot be imported."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    for name in names:
        (hidden / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    return os.pathsep.join([str(hidden), str(TESTS.parent)])


def tool(name: str, *arguments: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs `tools/NAME` as users do, in `folder`."""
    return subprocess.run(
        [sys.executable, str(TESTS.parent / "tools" / name), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """A finished run of four warehouse robots with memory, logged for TensorBoard; tests only read it."""
    command_line = CommandLine(tmp_path_factory.mktemp("small"))
    result = command_line("--env=warehouse", "--name=run", "--seed=3", "--set=log.tensorboard=true", *SMALL)
    assert result.returncode == 0, result.stderr
    return command_line.folder / "runs" / "run"


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Returns when `condition()` holds; fails if `process` ends before, or takes longer than that."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def _world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@contextlib.contextmanager
def sub_communicator(size: int):
    """The first `size` ranks of the world, None on the others; all meet again at the end."""
    from mpi4py import MPI

    from dials_mpi.parallel.waiting import wait

    world = _world()
    comm = world.Split(0 if world.rank < size else MPI.UNDEFINED, world.rank)
    yield None if comm == MPI.COMM_NULL else comm
    wait(world.Ibarrier())  # not after a failure, which ends all ranks
    if comm != MPI.COMM_NULL:
        comm.Free()


def pytest_configure(config):
    if config.getoption("--with-mpi", False) and _world().rank:
        config.option.verbose = -2  # one rank reports; the others speak up when they fail


def pytest_collection_modifyitems(config, items):
    """Under mpirun only the MPI part runs: the rest would run once on every rank."""
    if config.getoption("--with-mpi", False) and _world().size > 1:
        items[:] = [item for item in items if item.get_closest_marker("mpi")]


def pytest_exception_interact(node, report):
    """A failure on one rank ends all of them, which would wait for it in a collective for ever."""
    config = node.config
    if config.getoption("--with-mpi", False) and _world().size > 1 and report.failed:
        config.pluginmanager.getplugin("capturemanager").suspend(in_=True)
        print(f"\nrank {_world().rank}: {report.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)
        _world().Abort(1)


def pytest_terminal_summary(terminalreporter):
    """Says so where the job scripts have not been tested: a skipped test is easily overlooked."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in sorted({report.longrepr[2] for report in skipped if "test_slurm.py" in report.nodeid}):
        terminalreporter.section("SLURM WAS NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(f"The job scripts have not been run. {reason}")
        terminalreporter.line("On Debian or Ubuntu, as root: apt-get install slurm-wlm munge")
