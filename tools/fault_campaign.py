#!/usr/bin/env python3
"""Injects faults into small real runs, resumes each, and compares its end with that of an undisturbed run.

    python tools/fault_campaign.py                              every fault a few times: about half an hour on two cores
    python tools/fault_campaign.py --only SUMO --times 3        faults whose name contains SUMO, three times each
    python tools/fault_campaign.py --folder DIR --out docs/faults.md        goes on with what DIR already holds

Ranks, the launcher and SUMO are killed at random times and inside every stage of writing; the disk is full, a directory
is read-only (both need root, or are left out and said so); files are cut, removed, and have bits flipped. A trial
passes if the job is over within ten seconds of the fault with no process left, whatever is damaged is named or passed
over, at most one checkpoint interval is lost, and the resumed run ends with the bytes of the undisturbed one.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dials_mpi.analysis.equality import differences
from dials_mpi.cli import at_least
from dials_mpi.extras import MissingExtraError, extra
from dials_mpi.parallel.launcher import launched_rank
from dials_mpi.runs.checkpoint import all_checkpoints, newest_whole
from dials_mpi.runs.metrics import read_metrics

try:
    with extra("tests", "fault_campaign"):
        import psutil
except MissingExtraError as error:
    print(error, file=sys.stderr)
    sys.exit(2)

RANKS = 3
AGENTS = 4
INTERVAL = 800
"""Training steps between two checkpoints; twice the shortest stretch between two boundaries."""
OVER_WITHIN = 10.0
"""Seconds from a fault to the end of the job."""

_SMALL = [
    f"--agents={AGENTS}", "--set=ppo.copies=4", "--set=ppo.rollout_length=50", "--set=ppo.minibatch_size=100",
    "--set=predictor.epochs=2", "--set=dataset.steps=400", "--set=dataset.copies=2", "--set=policy.hidden_sizes=[32]",
    "--set=evaluation.episodes=2", "--set=evaluation.handcoded_episodes=2", "--set=evaluation.interval=400",
    "--set=checkpoint.boundary_seconds=0", f"--set=checkpoint.steps={INTERVAL}",
]  # fmt: skip
RUNS = {
    "warehouse": [
        "--env=warehouse", "--steps=6000", "--set=predictor.interval=1600", "--set=policy.recurrent_size=32",
        "--set=predictor.recurrent_size=32", "--set=ppo.sequence_length=50", *_SMALL,
    ],
    "traffic": [
        "--env=traffic", "--steps=3000", "--set=predictor.interval=1200", "--set=policy.recurrent_size=0",
        "--set=predictor.recurrent_size=0", "--set=ppo.sequence_length=1", "--set=domain.horizon=50",
        "--set=domain.backend=traci", *_SMALL,
    ],
}  # fmt: skip

_BALLAST = "ballast"
_RUN = Path("runs", "run")
_OWNERS = (1, 2)
POINTS = {
    "boundary": ((0, *_OWNERS), 18),
    "checkpoint/begin": (_OWNERS, 8),
    "checkpoint/shard": (_OWNERS, 8),
    "checkpoint/manifest": ((0,), 8),
    "checkpoint/rename": ((0,), 8),
    "checkpoint/removal": ((0,), 8),
    "dataset/write": (_OWNERS, 8),
    "dataset/rename": (_OWNERS, 8),
}
"""Where `runs.faults` can strike: on which ranks, and about how often a run of the warehouse comes by."""


_HEADER = f"""\
# Faults, and what becomes of a run

Made by `tools/fault_campaign.py`: {RANKS} ranks train {AGENTS} agents, a fault comes, the run is resumed, and its end
is compared with that of an undisturbed run, to the last byte of metrics, policies, optimisers, predictors, datasets.

- *job over within*: from the fault until no process of the job is left, at most; –: files were damaged between two
  starts.
- *most steps lost*: training steps between the last record before the fault and the checkpoint that the run went on
  from.
- *named*: trials in which the program said in a line what was wrong. It cannot when it is killed. A damaged checkpoint
  is passed over for the one before; any other damaged file stops the resumption and is restored by hand, as the line
  says.
"""


@dataclass
class Trial:
    """What came of one fault; one line of `trials.jsonl`."""

    fault: str
    number: int
    over_after: float | None = None
    """Seconds from the fault to the end of all processes of the job; None if it was not running."""
    left_over: int = 0
    """Processes that were still there ten seconds after the fault."""
    named: str = ""
    """The program's line about what is damaged."""
    steps_lost: int = 0
    """Between the last record before the fault and the checkpoint gone on from."""
    checkpoint_lost: bool = False
    """Whether the newest checkpoint that was whole before the fault could not be used after it."""
    wrong: str = ""
    """Why the trial failed; empty if it passed."""


class MissedError(Exception):
    """The run was over before the fault came; to be tried again."""


class Job:
    """A run under mpirun that may be disturbed.

    Args:
        domain: key of `RUNS`.
        folder: gets `log` and, in `runs`, the run directory `run`.
        fault: value of `DIALS_MPI_FAULT`, if one is wished for.
    """

    def __init__(self, domain: str, folder: Path, fault: str = ""):
        self.log = folder / "log"
        self.runs = folder / "runs"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [_mpirun(), "-n", str(RANKS), sys.executable, "-m", "dials_mpi", *RUNS[domain], "--resume=auto",
                 "--name=run", f"--runs={self.runs}"],
                env={**os.environ, "DIALS_MPI_FAULT": fault}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_obey_file_permissions, start_new_session=True,
            )  # fmt: skip
        self._members: set[psutil.Process] = set()

    def ranks(self) -> dict[int, psutil.Process]:
        """The job's Python processes as far as they have started, by rank."""
        found = {}
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                if "dials_mpi" in process.cmdline() and process.environ().keys() & {"PMI_RANK", "OMPI_COMM_WORLD_RANK"}:
                    found[launched_rank(process.environ())] = process
        return found

    def members(self) -> set[psutil.Process]:
        """All processes that ever belonged to the job, the launcher included, as far as has been looked."""
        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(self.process.pid)
            self._members |= {launcher, *launcher.children(recursive=True)}
        return self._members

    def alive(self) -> list[psutil.Process]:
        """Members that still run."""
        self.process.poll()
        return [process for process in self._members if _runs(process)]

    def wait(self) -> int:
        """Exit code of a job that nothing disturbs."""
        return self.process.wait(timeout=600)

    def end(self, fault_at: float) -> tuple[float, int]:
        """Waits for the end of a job that was struck; returns how long that took and how many had to be killed."""
        while self.alive() and time.monotonic() < fault_at + OVER_WITHIN:
            self.members()
            time.sleep(0.01)
        took = time.monotonic() - fault_at
        left = self.alive()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        return took, len(left)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _mpirun() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else "mpirun"


def _obey_file_permissions() -> None:
    """Without this root may write where the mode bits forbid it."""
    if sys.platform == "linux":
        pr_capbset_drop, cap_dac_override = 24, 1
        ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override)


class Campaign:
    """All faults, and how each is injected.

    Args:
        folder: for references and trials.
        seed: decides the times, places and bits.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.seed = seed
        self.faults: dict[str, Callable[[random.Random, Path], Trial]] = {}
        for rank in range(RANKS):
            self._live(f"SIGKILL of rank {rank}, any time", lambda job, rank=rank: job.ranks()[rank].kill())
        self._live("SIGKILL of the launcher, any time", lambda job: job.process.kill())
        self._live("SIGKILL of a SUMO child, any time", _kill_sumo, domain="traffic")
        self._live("SIGKILL of rank 1, any time (traffic)", lambda job: job.ranks()[1].kill(), domain="traffic")
        for point, (ranks, count) in POINTS.items():
            for rank in ranks:
                self._at_point(point, rank, count)
        if os.geteuid() == 0:
            self._disk_full()
        self._live("directory read-only, any time", _read_only, undo=_writable)
        for part, pattern in (("a shard", "rank_*.npz"), ("the manifest", "manifest.json")):
            for how in ("cut", "bit flipped", "missing"):
                self._damage(f"newest checkpoint: {part} {how}", f"checkpoints/NEWEST/{pattern}", how, goes_on=True)
        for file in ("metrics.jsonl", "timing.jsonl", "influence/agent_*.h5"):
            for how in ("cut", "bit flipped"):
                self._damage(f"{file} {how}", file, how)
        self._damage("config.yaml bit flipped", "config.yaml", "bit flipped")
        self._damage("run.json cut", "run.json", "cut")

    def reference(self, domain: str) -> tuple[Path, float]:
        """The undisturbed run, made once, and how many seconds it took."""
        folder = self.folder / f"reference_{domain}"
        seconds = folder / "seconds"
        if not seconds.exists():
            _empty(folder)
            begin = time.monotonic()
            code = Job(domain, folder).wait()
            if code:
                sys.exit(f"fault_campaign: the undisturbed run failed with {code}; see {folder / 'log'}")
            seconds.write_text(str(time.monotonic() - begin))
        return folder / _RUN, float(seconds.read_text())

    def stopped(self) -> Path:
        """A run that was killed after several checkpoints and AIP trainings, made once; to be copied and damaged."""
        folder = self.folder / "stopped"
        if not newest_whole(folder / _RUN / "checkpoints")[0]:
            _empty(folder)
            Job("warehouse", folder, "checkpoint/begin:5:KILL:1").wait()
        return folder / _RUN

    def try_one(self, fault: str, number: int) -> Trial:
        """One trial in a folder of its own, which is kept if the trial fails."""
        generator = random.Random(f"{self.seed} {fault} {number}")
        name = "".join(letter if letter.isalnum() else "_" for letter in fault)
        while True:
            folder = self.folder / f"{name}_{number}"
            _empty(folder)
            try:
                trial = self.faults[fault](generator, folder)
            except MissedError:
                continue
            trial.number = number
            if not trial.wrong:
                shutil.rmtree(folder)
            return trial

    def _live(
        self,
        name: str,
        strike: Callable[[Job], None],
        undo: Callable[[Path], None] = lambda folder: None,
        domain: str = "warehouse",
    ) -> Callable[[random.Random, Path], Trial]:
        """Adds a fault that comes at a random time."""

        def trial(generator: random.Random, folder: Path) -> Trial:
            job = Job(domain, folder)
            end = time.monotonic() + generator.uniform(0.5, 0.95 * self.reference(domain)[1])
            while time.monotonic() < end or len(job.ranks()) < RANKS:
                if job.process.poll() is not None:
                    raise MissedError
                time.sleep(0.05)
            before = newest_whole(folder / _RUN / "checkpoints")[0]
            try:
                strike(job)
            except (LookupError, FileNotFoundError, psutil.Error):  # there is nothing yet that it could strike
                job.process.terminate()
                job.end(time.monotonic())
                raise MissedError from None
            return self._after(Trial(name, 0), job, time.monotonic(), before, domain, folder, undo)

        self.faults[name] = trial
        return trial

    def _at_point(self, point: str, rank: int, count: int) -> None:
        """SIGKILL of a rank inside a stage of writing."""
        name = f"SIGKILL of rank {rank} at {point}"

        def trial(generator: random.Random, folder: Path) -> Trial:
            job = Job("warehouse", folder, f"{point}:{generator.randint(1, count)}:KILL:{rank}")
            while len(ranks := job.ranks()) < RANKS:
                time.sleep(0.02)
            before = None
            while _runs(ranks[rank]):
                before = next(iter(all_checkpoints(folder / _RUN / "checkpoints")), None)
                time.sleep(0.005)
            return self._after(Trial(name, 0), job, time.monotonic(), before, "warehouse", folder)

        self.faults[name] = trial

    def _disk_full(self) -> None:
        """The file system of the run has no byte left."""
        name = "disk full, any time"
        on_disk = self._live(name, _fill, undo=lambda folder: (folder / "runs" / _BALLAST).unlink())

        def trial(generator: random.Random, folder: Path) -> Trial:
            with _small_disk(folder / "runs") as disk:
                result = on_disk(generator, folder)
                if result.wrong:
                    shutil.copytree(disk, folder / "copy")
                return result

        self.faults[name] = trial

    def _damage(self, name: str, pattern: str, how: str, goes_on: bool = False) -> None:
        """A file of a stopped run is damaged; the run goes on without it, or says which file to restore."""

        def trial(generator: random.Random, folder: Path) -> Trial:
            source = self.stopped()
            shutil.copytree(source, folder / _RUN)
            newest = all_checkpoints(folder / _RUN / "checkpoints")[0]
            file = generator.choice(sorted((folder / _RUN).glob(pattern.replace("NEWEST", newest.name))))
            content = file.read_bytes()
            if how == "missing":
                file.unlink()
            elif how == "cut":
                file.write_bytes(content[: generator.randrange(len(content))])
            else:
                changed = bytearray(content)
                # What lies behind the checkpoint is cut off and not looked at: the checkpoint tells how much counts.
                known = newest_whole(source / "checkpoints")[1]["metrics"].get(file.name, {"size": len(content)})
                changed[generator.randrange(known["size"])] ^= 1 << generator.randrange(8)
                file.write_bytes(changed)
            result = Trial(name, 0)
            code = Job("warehouse", folder).wait()
            lines = (folder / "log").read_text().splitlines()
            result.named = next((line for line in lines if line.startswith("dials_mpi:") and file.name in line), "")
            if code and not goes_on:
                if not result.named:
                    result.wrong = f"exit code {code} and no line that names {file.name}"
                    return result
                file.write_bytes(content)  # as somebody would who has read the line
                code = Job("warehouse", folder).wait()
            return self._compare(
                result, code, "warehouse", folder, newest if not goes_on else None, read_metrics(source)
            )

        self.faults[name] = trial

    def _after(
        self,
        trial: Trial,
        job: Job,
        fault_at: float,
        before: Path | None,
        domain: str,
        folder: Path,
        undo: Callable[[Path], None] = lambda folder: None,
    ) -> Trial:
        """Waits for the end of the job that was struck, resumes it, and judges."""
        trial.over_after, trial.left_over = job.end(fault_at)
        lines = job.log.read_text().splitlines()
        if any(line.startswith("results in") for line in lines):
            raise MissedError
        trial.named = next((line for line in lines if line.startswith("dials_mpi:")), "")
        undo(folder)
        run = folder / _RUN
        records = read_metrics(run) if (run / "metrics.jsonl").exists() else []
        return self._compare(trial, Job(domain, folder).wait(), domain, folder, before, records)

    def _compare(
        self, trial: Trial, code: int, domain: str, folder: Path, before: Path | None, records: list[dict]
    ) -> Trial:
        wrong = []
        if code:
            wrong.append(f"resuming ended with exit code {code}")
        else:
            facts = json.loads((folder / _RUN / "run.json").read_text())
            gone_on_from = facts["resumed"][-1]["step"] if "resumed" in facts else 0
            trial.steps_lost = max(0, records[-1]["step"] - gone_on_from) if records else 0
            trial.checkpoint_lost = before is not None and gone_on_from < int(before.name.removeprefix("step_"))
            wrong += differences(self.reference(domain)[0], folder / _RUN)
        if trial.left_over:
            wrong.append(f"{trial.left_over} processes left over after {OVER_WITHIN:g} s")
        if trial.checkpoint_lost:
            wrong.append(f"{before.name} was whole, and was lost")
        allowed = INTERVAL if "newest checkpoint" not in trial.fault else 2 * INTERVAL
        if trial.steps_lost > allowed:
            wrong.append(f"{trial.steps_lost} steps lost")
        trial.wrong = "; ".join(wrong)
        return trial


def _kill_sumo(job: Job) -> None:
    children = [process for process in job.members() if _runs(process) and process.name() == "sumo"]
    random.choice(children).kill()


def _fill(job: Job) -> None:
    with contextlib.suppress(OSError), (job.runs / _BALLAST).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _folders(run: Path) -> list[Path]:
    return [run, *(path for path in run.rglob("*") if path.is_dir())]


def _read_only(job: Job) -> None:
    for part in _folders(job.runs / "run"):
        part.chmod(0o555)


def _writable(folder: Path) -> None:
    for part in _folders(folder / _RUN):
        part.chmod(0o755)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def table(trials: list[Trial]) -> str:
    """A Markdown table, a row per fault."""
    lines = [
        "| fault | times | job over within | most steps lost | named | equal at the end |",
        "|---|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(trial.fault for trial in trials):
        mine = [trial for trial in trials if trial.fault == fault]
        over = [trial.over_after for trial in mine if trial.over_after is not None]
        lines.append(
            f"| {fault} | {len(mine)} | {f'{max(over):.1f} s' if over else '–'} | "
            f"{max(trial.steps_lost for trial in mine)} | {sum(bool(trial.named) for trial in mine)} | "
            f"{sum(not trial.wrong for trial in mine)} |"
        )
    wrong = [f"- {trial.fault}, {trial.number}: {trial.wrong}" for trial in trials if trial.wrong]
    passed = f"{len(trials) - len(wrong)} of {len(trials)} passed; a checkpoint every {INTERVAL} steps."
    return "\n".join([*lines, "", passed, *wrong])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for runs and results; what it holds is not done again (a new one)")
    parser.add_argument("--times", type=at_least(1), default=4, help="trials of each fault (4)")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name contains it")
    parser.add_argument("--seed", type=at_least(0), default=0, help="(0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fault_campaign_"))
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(folder.resolve(), arguments.seed)
    names = [name for name in campaign.faults if arguments.only in name]
    if not names:
        parser.error(f"--only {arguments.only}: no fault is called that; see --list")
    if arguments.list:
        print("\n".join(names))
        return 0
    if os.geteuid():
        print("left out: the full disk (mounting a small one needs root)")
    results = folder / "trials.jsonl"
    trials = [Trial(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(trial.fault, trial.number) for trial in trials}
    wanted = [(name, number) for number in range(arguments.times) for name in names if (name, number) not in done]
    for name, number in tqdm(wanted, unit="fault", smoothing=0.1):
        trial = campaign.try_one(name, number)
        trials.append(trial)
        with results.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        if trial.wrong:
            tqdm.write(f"{trial.fault}, {trial.number}: {trial.wrong}")
    order = list(campaign.faults)
    shown = sorted((trial for trial in trials if trial.fault in names), key=lambda trial: order.index(trial.fault))
    text = table(shown)
    print(text)
    print(f"everything is in {folder}")
    if arguments.out:
        arguments.out.write_text(f"{_HEADER}\n{text}\n")
    return int(any(trial.wrong for trial in shown))


if __name__ == "__main__":
    sys.exit(main())
