"""A run directory: everything needed to analyse and report a run, without MPI."""

import errno
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from dials_mpi.errors import UserError
from dials_mpi.runs.files import replace_durably
from dials_mpi.runs.stopping import REQUEUE_FILE, STOP_FILE

_PACKAGES = ("dials_mpi", "numpy", "torch", "mpi4py", "h5py", "pydantic", "eclipse-sumo", "libsumo", "traci")


class RunDirectory:
    """`runs/<name>/` with `config.yaml`, `run.json`, metrics, datasets and policies.

    Args:
        path: of the directory, which does not exist yet.
        configuration_yaml: for `config.yaml`.
        facts: for `run.json`, beside what every run writes there.
        or_next: if the directory exists, take the next free name instead: NAME-2, NAME-3 and so on.

    Raises:
        UserError: the directory exists already, or cannot be created or written.
    """

    def __init__(self, path: Path, configuration_yaml: str, facts: dict[str, Any], or_next: bool = False):
        self._facts = {
            "state": "running",
            "started": _now(),
            "command": sys.argv,
            "host": platform.node(),
            "versions": versions(),
            "git_revision": git_revision(),
            **facts,
        }
        names = [path.name, *(f"{path.name}-{number}" for number in range(2, 1000) if or_next)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole: a run that dies here leaves none behind. The folder around it, whose name no run
            # can have, keeps this attempt apart from others; what is inside has the mode bits that are usual here.
            with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent, ignore_cleanup_errors=True) as folder:
                self.path = Path(folder) / path.name
                self.path.mkdir()
                (self.path / "config.yaml").write_text(configuration_yaml, encoding="utf-8")
                _write_facts(self.path, self._facts)
                self._lock = lock(self.path)
                self.path = _rename_to_first_free(self.path, [path.with_name(name) for name in names])
        except OSError as error:
            raise UserError(
                f"{path.parent}: cannot be written ({error.strerror}); choose another --runs folder"
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

    def update(self, **facts: Any) -> None:
        """Changes entries of `run.json`, which is whole at any time."""
        self._facts.update(facts)
        _write_facts(self.path, self._facts)

    def finish(self, summary: dict[str, Any], stopped_by: str | None = None) -> None:
        """The last entries of `run.json`; with a reason to be resumed."""
        ended = {"state": "stopped", "stopped_by": stopped_by} if stopped_by else {"state": "finished"}
        self.update(**ended, ended=_now(), summary=summary)
        self._lock.close()


def check_name(name: str, origin: str) -> None:
    """Refuses what no run may be called: names that lead elsewhere, are hidden, or that a shell would take apart.

    Args:
        origin: of the name, for people; the line begins with it.

    Raises:
        UserError: naming the rule.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+=,@-]{0,199}", name):
        raise UserError(
            f"{origin} {name!r} is no name for a run: one has up to 200 of a-z, A-Z, 0-9 and ._+=,@-, and begins "
            "with a letter, a digit or _"
        )


def exists(path: Path) -> UserError:
    """What is wrong with a new run in a directory that is there."""
    return UserError(f"{path}: this run directory exists already; choose another --name, or move it away")


def _rename_to_first_free(new: Path, candidates: Sequence[Path]) -> Path:
    """Renames a directory to the first of these paths that is free, also from what others make at the same time."""
    for path in candidates:
        if path.exists():
            continue
        try:
            return new.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
    raise exists(candidates[0])


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
        raise UserError(
            f"{error.filename or path}: cannot be used ({error.strerror}); restore it, or start a new run"
        ) from error
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
