"""Benchmarks of whole runs of the package, under mpirun, read off what they leave on disk. Started by bench.py."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench_measure import Figure, Measurement, Options

import dials_mpi
from dials_mpi.analysis.published import FINAL_RETURN
from dials_mpi.analysis.reading import Run, open_run
from dials_mpi.errors import UserError
from dials_mpi.parallel.launcher import launched_rank
from dials_mpi.runs.clock import LEARNING

_POLL_SECONDS = 0.05
_PAPER_DOMAINS = ("warehouse", "traffic")
_CHECKPOINT_RANKS = 3
_CHECKPOINT_AGENTS = (4, 25, 100)
_HALO_RANKS = (2, 5)
_HALO_ROWS = (20, 40_960)
"""Bytes: five float32, and these of 2048 copies."""
_LAUNCHER_PREFIXES = ("PMI", "OMPI_COMM_WORLD", "HYDRA", "MPI_LOCAL", "SLURM")
_OVERSUBSCRIBE = {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
"""Open MPI wants to be told that more ranks than cores are meant, as tools/environment.sh does."""

_SHORTEST = 1
"""Steps, which a run rounds up to whole episodes and whole rollouts."""
_MEMORY_STEPS = 20_000
_MEMORY_AGENTS = 4


class Finished(NamedTuple):
    run: Run
    first_record: float
    """Seconds from the launch until all ranks had come to the first evaluation."""


def warehouse_weak_scaling(options: Options, stack: ExitStack) -> list[Measurement]:
    # Learning robots make a square.
    return _weak_scaling(options, "warehouse", (2, 5, 10, 17, 26), 96_000, ["--mode=untrained-dials"])


def traffic_weak_scaling(options: Options, stack: ExitStack) -> list[Measurement]:
    # Untrained predictors would fill the roads; little data shows how few vehicles come.
    little = ["--set=dataset.steps=1500", "--set=predictor.epochs=20"]
    return _weak_scaling(options, "traffic", (2, 3, 6, 13, 26), 19_200, little)


def start_up(options: Options, stack: ExitStack) -> list[Measurement]:
    """From the launch until all ranks have come to the first evaluation, which is a short one."""
    measurements = []
    for env in _PAPER_DOMAINS:
        for ranks in options.sizes(2, 26):
            figure = Figure(f"{env}, {ranks} ranks", "s", better="lower", about=f"{cores()} cores")

            def once(env=env, ranks=ranks, figure=figure):
                arguments = [f"--env={env}", "--mode=untrained-dials", *_short(_SHORTEST)]
                yield figure.name, run_package(options, ranks, arguments).first_record

            measurements.append(Measurement([figure], once))
    return measurements


def aip_round(options: Options, stack: ExitStack) -> list[Measurement]:
    """One round, on all cores: what the paper's appendix G calls influence training."""
    measurements = []
    for n, published in ((4, 118.66), (100, 4090.42)):
        if n > options.most:
            continue
        ranks = min(cores(), n) + 1
        name = f"AIP round, {n} warehouse agents"
        figures = [
            Figure(name, "s", published, 30.0 if n == 100 else None, "lower", f"{ranks} ranks on {cores()} cores"),
            Figure(f"{name}: collection", "s", better="lower"),
            Figure(f"{name}: training", "s", better="lower"),
        ]

        def once(n=n, ranks=ranks, figures=figures):
            arguments = ["--env=warehouse", f"--agents={n}", *_short(_SHORTEST)]
            finished = run_package(options, ranks, arguments)
            phases = finished.run.facts["summary"]["phases"]
            collection, training = (
                sum(phases.get(phase, {"max_seconds": 0.0})["max_seconds"] for phase in part)
                for part in (("collect", "scatter"), ("aip_training",))
            )
            for figure, seconds in zip(figures, (collection + training, collection, training), strict=True):
                yield figure.name, seconds

        measurements.append(Measurement(figures, once))
    return measurements


def memory(options: Options, stack: ExitStack) -> list[Measurement]:
    """The largest of some ranks that train one agent each: AIP training, then learning.

    The default layout, and not a run of one agent: what the rank beside it does not run, the code of the learner, would
    count as private, where on a node with more agents it is shared.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        options.notes.append("memory: this system has no /proc/PID/smaps_rollup, which tells private memory")
        return []
    if options.most < _MEMORY_AGENTS:
        return []
    measurements = []
    for env, published in (("warehouse", 369.0), ("traffic", 457.0)):
        figures = [
            Figure(f"{env}, 1 agent per rank: private", "MiB", None, 170.0, "lower"),
            Figure(f"{env}, 1 agent per rank: resident", "MiB", published, better="lower"),
        ]

        def once(env=env, figures=figures):
            largest = [0.0, 0.0]

            def watch(pid: int, folder: Path) -> None:
                for process in _descendants(pid):
                    if _rank(process) > 0:
                        largest[:] = map(max, largest, _memory(process))

            steps = options.stretched(_MEMORY_STEPS)
            arguments = [f"--env={env}", f"--agents={_MEMORY_AGENTS}", "--set=predictor.epochs=3", *_short(steps)]
            run_package(options, _MEMORY_AGENTS + 1, arguments, watch)
            return zip((figure.name for figure in figures), largest, strict=True)

        measurements.append(Measurement(figures, once))
    return measurements


def checkpoint(options: Options, stack: ExitStack) -> list[Measurement]:
    """By number of agents, with the default networks; every rank takes part as in a run."""
    sizes = options.sizes(*_CHECKPOINT_AGENTS)
    names = [f"{n} {env} agents" for env in _PAPER_DOMAINS for n in sizes]
    figures = [
        figure
        for name in names
        for figure in (
            Figure(name, "s", better="lower", about=f"{_CHECKPOINT_RANKS} ranks"),
            Figure(f"{name}: size", "KB per agent", better="lower"),
            Figure(f"{name}: of the default interval", "%", better="lower"),
            Figure(f"{name}: to writing one file of that size", "×", better="lower"),
        )
    ]

    def once():
        folder = options.folder or Path(tempfile.gettempdir())
        for cost in _launched("bench_checkpoint.py", _CHECKPOINT_RANKS, folder, *sizes):
            name = f"{cost['agents']} {cost['env']} agents"
            for seconds, one_file in zip(cost["seconds"], cost["one_file_seconds"], strict=True):
                yield name, seconds
                yield f"{name}: of the default interval", 100 * seconds / cost["interval_seconds"]
                yield f"{name}: to writing one file of that size", seconds / one_file
            yield f"{name}: size", cost["bytes"] / 1000 / cost["agents"]

    return [Measurement(figures, once)] if sizes else []


def halo(options: Options, stack: ExitStack) -> list[Measurement]:
    """Each agent of a grid of 10 × 10 gets the rows of those beside it; ranks share the grid by rows."""
    measurements = []
    for ranks in options.sizes(*_HALO_RANKS):
        names = {size: f"{ranks} ranks, rows of {size:,} bytes" for size in _HALO_ROWS}
        figures = [
            figure
            for name in names.values()
            for figure in (
                Figure(name, "µs", better="lower", about=f"{cores()} cores"),
                Figure(f"{name}: exchange alone", "µs", better="lower"),
                Figure(f"{name}: exchange alone, received by a rank", "MB/s"),
                Figure(f"{name}: exchange alone, to Ineighbor_alltoallv", "×", better="lower"),
            )
        ]

        def once(ranks=ranks, names=names):
            for cost in _launched("bench_halo.py", ranks, options.seconds, *names):
                name, exchange = names[cost["row_bytes"]], cost["exchange"]
                yield name, 1e6 * cost["gather"]
                yield f"{name}: exchange alone", 1e6 * exchange
                yield f"{name}: exchange alone, received by a rank", cost["received_bytes"] / exchange / 1e6
                yield f"{name}: exchange alone, to Ineighbor_alltoallv", exchange / cost["neighbour_collective"]

        measurements.append(Measurement(figures, once))
    return measurements


def _launched(program: str, ranks: int, *arguments: object) -> list[dict[str, Any]]:
    """What a program beside this one says under mpirun, an object a line.

    Raises:
        UserError: it fails.
    """
    command = [mpirun(), "-n", str(ranks), sys.executable, str(Path(__file__).with_name(program))]
    command += map(str, arguments)
    launched = subprocess.run(command, env=environment(), capture_output=True, text=True)
    _check(launched.returncode, launched.stderr, command)
    return [json.loads(line) for line in launched.stdout.splitlines()]


def warehouse_training(options: Options, stack: ExitStack) -> list[Measurement]:
    return _to_published_return(options, "warehouse", (14_300.0, 100.0), (1122.0, 30_000.0))


def traffic_training(options: Options, stack: ExitStack) -> list[Measurement]:
    return _to_published_return(options, "traffic", (15_700.0, 90.0), (1016.0, 15_000.0))


def _to_published_return(
    options: Options, env: str, seconds: tuple[float, float], rate: tuple[float, float]
) -> list[Measurement]:
    """CPU seconds until the mean return over 4 agents is what the paper's was in the end, in the default configuration.

    Every repeat has another seed.

    Args:
        seconds, rate: published figure and target, of the CPU seconds and of learning.
    """
    wanted = FINAL_RETURN[env]["dials"][4]
    figures = [
        Figure(f"core-seconds to return {wanted:g}, 4 agents", "s", *seconds, "lower"),
        Figure("core-seconds to the end", "s", better="lower"),
        Figure("final return", "", wanted),
        Figure("IALS + PPO, mean of the run", "agent-steps/s", *rate, about="by the clock, of one process"),
    ]
    seeds = iter(range(10**6))

    def once():
        seed, reached, used = next(seeds), [], [0.0]

        def watch(pid: int, folder: Path) -> None:
            used[0] = _cpu_seconds(pid) or used[0]
            file = folder / "metrics.jsonl"
            if reached or not file.exists():
                return
            records = map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1])
            if any(record["phase"] == "evaluate" and record["mean_return"] >= wanted for record in records):
                reached.append(used[0])

        finished = run_package(options, 0, [f"--env={env}", "--agents=4", f"--seed={seed}"], watch)
        returns = finished.run.series("evaluate", "mean_return").values
        if reached:
            yield figures[0].name, reached[0]
        else:
            options.notes.append(f"{env}, seed {seed}: return {wanted:g} was not reached (at best {returns.max():.2f})")
        yield figures[1].name, used[0]
        yield figures[2].name, float(returns[-1])
        summary = finished.run.facts["summary"]
        learning = sum(summary["phases"][phase]["mean_seconds"] for phase in LEARNING)
        yield figures[3].name, summary["agent_steps"] / learning

    if _cpu_seconds(os.getpid()) is None:
        options.notes.append(f"{env}-training: this system has no /proc/PID/stat, which tells CPU time")
        return []
    return [Measurement(figures, once)]


def _weak_scaling(options: Options, env: str, ranks: tuple[int, ...], steps: int, more: list[str]) -> list[Measurement]:
    """One agent per rank beside rank 0, and ever more ranks on the cores of this machine.

    A core is busy if there is a rank for it that learns; with more ranks than cores they take turns.

    Args:
        steps: of every agent; the same for any number, as lights that have learned more leave SUMO less to do.
        more: arguments of the runs.
    """
    rates: dict[str, float] = {}
    measurements = []
    short = _short(options.stretched(steps))
    for size in options.sizes(*ranks):
        owners = size - 1
        about = f"{min(owners, cores())} of {cores()} cores busy"
        wall, cpu = f"{size} ranks", f"{size} ranks, by CPU time"
        figures = [
            Figure(wall, "agent-steps/s and busy core", about=about),
            Figure(cpu, "agent-steps/CPU-second", about=about),
            Figure(f"{wall}: CPU use of waiting ranks", "%", 100.0, 2.0, "lower"),
        ]
        if size > ranks[0]:
            figures.insert(1, Figure(f"{wall}: to {ranks[0]} ranks", "×", None, 0.85))
            figures.insert(3, Figure(f"{cpu}: to {ranks[0]} ranks", "×"))
        arguments = [f"--env={env}", f"--agents={owners}", *more, *short]
        if env == "traffic":
            arguments += ["--set=domain.rows=1", f"--set=domain.columns={owners}"]

        def once(size=size, owners=owners, arguments=arguments, wall=wall, cpu=cpu):
            learning = _CpuOfLearning()
            summary = run_package(options, size, arguments, learning.watch).run.facts["summary"]
            busy = sum(summary["phases"][phase]["mean_seconds"] for phase in LEARNING) * size / owners
            rates[wall] = summary["agent_steps"] / busy / min(owners, cores())
            if learning.seconds:
                rates[cpu] = summary["agent_steps"] / learning.seconds
            for name in (name for name in (wall, cpu) if name in rates):
                yield name, rates[name]
                if size > ranks[0]:
                    yield f"{name}: to {ranks[0]} ranks", rates[name] / rates[name.replace(wall, f"{ranks[0]} ranks")]
            if summary["waiting_cpu_share"] is None:
                options.notes.append(f"{env}, {wall}: nobody waited for more than a second")
            else:
                yield f"{wall}: CPU use of waiting ranks", 100 * summary["waiting_cpu_share"]

        measurements.append(Measurement(figures, once))
    return measurements


class _CpuOfLearning:
    """CPU seconds that all ranks of a run with a single segment need for its learning; 0 where there is no /proc."""

    def __init__(self):
        self.seconds = 0.0
        self._begin = 0.0
        self._records = 0

    def watch(self, pid: int, folder: Path) -> None:
        """Reads the ranks' CPU time whenever there is a new record: the one before `learn` is where learning begins."""
        file = folder / "timing.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if len(lines) == self._records or self.seconds:
            return
        self._records = len(lines)
        used = sum(_cpu_seconds(process) or 0.0 for process in _descendants(pid))
        if any('"learn"' in line for line in lines):
            self.seconds = used - self._begin
        self._begin = used


def run_package(
    options: Options, ranks: int, arguments: list[str], watch: Callable[[int, Path], None] | None = None
) -> Finished:
    """`python -m dials_mpi` from its launch to its end.

    Args:
        ranks: under mpirun; 0: without it.
        watch: called again and again with the id of the launched process and the run directory.

    Raises:
        UserError: the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as own:
        folder = Path(own) / "run"
        command = [sys.executable, "-m", "dials_mpi", *arguments, f"--runs={own}", "--name=run"]
        if ranks:
            command = [mpirun(), "-n", str(ranks), *command]
        errors = Path(own) / "errors.txt"
        first_record, begin = 0.0, time.perf_counter()
        with errors.open("w") as stream:
            process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream
            )
        try:
            while process.poll() is None:
                if not first_record and _size(folder / "timing.jsonl"):
                    first_record = time.perf_counter() - begin
                if watch:
                    watch(process.pid, folder)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        _check(process.returncode, errors.read_text(errors="replace"), command)
        return Finished(open_run(folder), first_record)


def environment() -> dict[str, str]:
    """For a job of its own, with this checkout of the package."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_PREFIXES)}
    path = [str(Path(dials_mpi.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**_OVERSUBSCRIBE, **own, "PYTHONPATH": os.pathsep.join(path)}


def mpirun() -> str:
    """The launcher beside this Python (MPI from a wheel), else the one on PATH.

    Raises:
        UserError: there is none.
    """
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        raise UserError("no mpirun: load an MPI, pip install 'dials_mpi[mpi]', or choose parts that need none (--list)")
    return found


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short(steps: float) -> list[str]:
    """Arguments of a run in a single segment, with next to no evaluation."""
    steps = math.ceil(steps)
    return [
        f"--steps={steps}",
        f"--set=evaluation.interval={steps}",
        "--set=evaluation.episodes=2",
        "--set=evaluation.handcoded_episodes=0",
    ]


def _check(code: int, errors: str, command: list[str]) -> None:
    if code:
        last = errors.strip().splitlines()[-1:] or ["it said nothing"]
        raise UserError(f"{' '.join(command)} ended with code {code}: {last[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            parents[int(folder.name)] = int(fields[1])
    found, front = [], {pid}
    while front := {child for child, parent in parents.items() if parent in front}:
        found += front
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third, the state, on; None if there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _cpu_seconds(pid: int) -> float | None:
    """User and system time of a process so far."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else None


def _rank(pid: int) -> int:
    try:
        content = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return 0
    variables: Mapping[str, str] = dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)
    return launched_rank(variables)


def _memory(pid: int) -> tuple[float, float]:
    """Private and resident memory of a process, MiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, kib["Rss"] / 1024
