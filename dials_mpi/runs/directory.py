"""A run directory: everything needed to analyse and report a run, without MPI."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from dials_mpi.errors import UserError
from dials_mpi.runs.files import replace_durably
from dials_mpi.runs.stopping import REQUEUE_FILE, STOP_FILE

_PACKAGES = ("dials_mpi", "numpy", "torch", "mpi4py", "h5py", "pydantic", "eclipse-sumo", "libsumo", "traci")


class RunDirectory:
    """`runs/<name>/` with `config.yaml`, `run.json`, metrics, datasets and policies.

    Raises:
        UserError: the directory exists already, or cannot be created or written.
    """

    def __init__(self, path: Path, configuration_yaml: str, facts: dict[str, Any]):
        self.path = path
        self._facts = {
            "state": "running",
            "started": _now(),
            "command": sys.argv,
            "host": platform.node(),
            "versions": versions(),
            "git_revision": git_revision(),
            **facts,
        }
        new = path.with_name(f"{path.name}.new")  # renamed when it is whole: a run that dies here leaves none behind
        try:
            if path.exists():
                raise FileExistsError
            shutil.rmtree(new, ignore_errors=True)
            (new / self.influence.name).mkdir(parents=True)
            (new / "config.yaml").write_text(configuration_yaml, encoding="utf-8")
            _write_facts(new, self._facts)
            new.rename(path)
            self._lock = lock(path)
        except FileExistsError:
            raise UserError(
                f"{path}: this run directory exists already; choose another --name, or move it away"
            ) from None
        except OSError as error:
            raise UserError(
                f"{error.filename or path}: cannot be written ({error.strerror}); choose another --runs folder"
            ) from None

    @classmethod
    def reopen(cls, path: Path, held: IO, configuration_yaml: str, step: int, facts: dict[str, Any]) -> "RunDirectory":
        """The directory of a run that goes on from `step`.

        Args:
            held: what `lock` returned.

        Raises:
            UserError: it cannot be read or written.
        """
        self = cls.__new__(cls)
        self.path = path
        self._lock = held
        self._facts = read_facts(path)
        try:
            self.influence.mkdir(exist_ok=True)
            temporary = path / "config.yaml.tmp"
            temporary.write_text(configuration_yaml, encoding="utf-8")
            replace_durably(temporary, path / "config.yaml")
            for name in (STOP_FILE, REQUEUE_FILE):
                (path / name).unlink(missing_ok=True)
            for name in ("ended", "failure", "stopped_by", "summary"):
                self._facts.pop(name, None)
            sessions = [
                *self._facts.get("resumed", []),
                {"time": _now(), "step": step, "host": platform.node(), **facts},
            ]
            self.update(state="running", versions=versions(), git_revision=git_revision(), resumed=sessions)
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot be used ({error.strerror})") from error
        return self

    @property
    def influence(self) -> Path:
        return self.path / "influence"

    def update(self, **facts: Any) -> None:
        """Changes entries of `run.json`, which is whole at any time."""
        self._facts.update(facts)
        _write_facts(self.path, self._facts)

    def finish(self, summary: dict[str, Any], stopped_by: str | None = None) -> None:
        """The last entries of `run.json`; with a reason to be resumed."""
        ended = {"state": "stopped", "stopped_by": stopped_by} if stopped_by else {"state": "finished"}
        self.update(**ended, ended=_now(), summary=summary)
        self._lock.close()


def lock(path: Path, patience: float = 0.0) -> IO:
    """Makes sure that no other process works on a run directory, until what is returned is closed or this one ends.

    Args:
        patience: seconds to wait for another one to end. On shared file systems the lock of a machine that has died
            outlives it by a minute or two.

    Raises:
        UserError: another one does, or the directory cannot be written.
    """
    try:
        held = (path / "lock").open("w")
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be used ({error.strerror})") from error
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                held.close()
                raise UserError(
                    f"{path}: another process is at work on this run; wait for its end, or stop it"
                ) from None
            time.sleep(1)
            continue
        except OSError:  # file systems without locks exist; there nobody is kept out
            pass
        return held


def read_facts(path: Path) -> dict[str, Any]:
    """`run.json` of a run directory.

    Raises:
        UserError: it cannot be read.
    """
    try:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("no facts of a run")
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be used ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path / 'run.json'}: damaged ({error}); restore it, or start a new run") from error
    return facts


def record_failure(folder: Path, rank: int, message: str, details: str) -> Path:
    """Any rank's last words: state `failed` in `run.json`, the traceback in the file whose path is returned."""
    file = folder / f"failure_rank_{rank}.txt"
    file.write_text(details, encoding="utf-8")
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    _write_facts(folder, {**facts, "state": "failed", "ended": _now(), "failure": message})
    return file


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    temporary = folder / f"run.json.{os.getpid()}.tmp"  # several ranks may fail at once
    temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    replace_durably(temporary, folder / "run.json")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """The revision of the checkout that this package runs from, with `+` if it was changed; None outside one."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():  # an installed package, perhaps inside some other repository
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(folder), *arguments), capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
