"""Checkpoints: `checkpoints/step_000400000/` in a run directory, whole or not there at all.

Every rank writes its agents' arrays into a directory under a temporary name; rank 0 writes `manifest.json` last, which
names every file with its size and SHA-256 (its own content as well), and renames the directory. Nothing is pickled:
arrays are .npz, the rest is JSON. A checkpoint is used only if all of it is as the manifest says.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.errors import UserError
from dials_mpi.runs import faults
from dials_mpi.runs.files import sync

FORMAT = 3
_FORMAT_IN_UPDATES = 2
"""In which what is counted in training steps since was counted in updates."""
MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_DAMAGED = ".damaged"


class DamagedError(Exception):
    """A checkpoint that is not what its manifest says; the message tells which file and how."""


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written until it is whole."""
    return checkpoints / f"step_{step:012d}{_PARTIAL}"


def begin(checkpoints: Path, step: int) -> None:
    """Rank 0, before any rank writes: an empty directory, whatever an earlier attempt left."""
    folder = partial_folder(checkpoints, step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def shard_name(rank: int) -> str:
    return f"rank_{rank:04d}.npz"


def write_shard(folder: Path, rank: int, arrays: dict[str, np.ndarray]) -> tuple[int, bytes]:
    """Writes and syncs one rank's arrays; returns the file's size and SHA-256 digest."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    faults.point("checkpoint/begin")
    with (folder / shard_name(rank)).open("wb") as file:
        file.write(content[: len(content) // 2])
        faults.point("checkpoint/shard")
        file.write(content[len(content) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    return len(content), hashlib.sha256(content).digest()


def publish(checkpoints: Path, step: int, manifest: dict[str, Any], keep: int) -> Path:
    """Rank 0, when all shards are written: manifest, rename, and only then the removal of older checkpoints.

    The `keep` newest stay, and the one of the step that the manifest says is the best.
    """
    folder = partial_folder(checkpoints, step)
    faults.point("checkpoint/manifest")
    content = {"format": FORMAT, **manifest}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _digest(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
    faults.point("checkpoint/rename")
    final = checkpoints / folder.name.removesuffix(_PARTIAL)
    folder.rename(final)
    sync(checkpoints)
    faults.point("checkpoint/removal")
    for old in all_checkpoints(checkpoints)[keep:]:
        if step_of(old) != manifest["best_step"]:
            shutil.rmtree(old)
    return final


def all_checkpoints(checkpoints: Path) -> list[Path]:
    """Those that were renamed, newest first; whole or not."""
    return sorted((p for p in checkpoints.glob("step_*") if re.fullmatch(r"step_\d+", p.name)), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Checks every file of a checkpoint against its manifest.

    Raises:
        DamagedError: anything is not as it should be.
        UserError: a version of dials_mpi wrote it that knows more than this one.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
        sound = digest == _digest(manifest)
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{checkpoint / MANIFEST} cannot be read ({error})") from error
    if not sound:
        raise DamagedError(f"{checkpoint / MANIFEST} is damaged: its SHA-256 is not what it says")
    if version not in (FORMAT, _FORMAT_IN_UPDATES):
        raise UserError(
            f"{checkpoint} has format {version}; this version of dials_mpi reads {FORMAT}; resume with the one that "
            "wrote it"
        )
    for name, facts in manifest["files"].items():
        try:
            content = (checkpoint / name).read_bytes()
        except OSError as error:
            raise DamagedError(f"{checkpoint / name} cannot be read ({error.strerror})") from error
        if len(content) != facts["size"]:
            raise DamagedError(f"{checkpoint / name} has {len(content)} bytes instead of {facts['size']}")
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise DamagedError(f"{checkpoint / name} is damaged: its SHA-256 is not the manifest's")
    if version == _FORMAT_IN_UPDATES and manifest.get("evaluated", -1) > 0:
        manifest["evaluated"] *= manifest["step"] // manifest["updates"]
    return manifest


def newest_whole(checkpoints: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole, its manifest, and what is wrong with newer ones; None without any.

    Raises:
        UserError: a newer version of dials_mpi wrote it.
    """
    complaints = []
    for checkpoint in all_checkpoints(checkpoints):
        try:
            return checkpoint, read_manifest(checkpoint), complaints
        except DamagedError as error:
            complaints.append(str(error))
    return None, {}, complaints


def clear_after(checkpoints: Path, step: int) -> None:
    """Takes out of the way what a run that goes on from `step` will write again: half-written and damaged ones.

    Damaged ones are kept under another name, so that somebody can look at them.
    """
    for left_over in checkpoints.glob(f"*{_PARTIAL}"):
        shutil.rmtree(left_over)
    for damaged in all_checkpoints(checkpoints):
        if step_of(damaged) > step:
            shutil.rmtree(damaged.with_name(damaged.name + _DAMAGED), ignore_errors=True)
            damaged.rename(damaged.with_name(damaged.name + _DAMAGED))


def read_agents(checkpoint: Path, manifest: dict[str, Any], agents: Sequence[int]) -> dict[str, np.ndarray]:
    """Arrays [A, …] by name of the given agents, from whichever ranks wrote them."""
    rows: dict[str, dict[int, np.ndarray]] = {}
    for name, facts in manifest["files"].items():
        mine = [agent for agent in facts["agents"] if agent in agents]
        if not mine:
            continue
        with np.load(checkpoint / name, allow_pickle=False) as shard:
            for key in shard.files:
                array = shard[key]
                for agent in mine:
                    rows.setdefault(key, {})[agent] = array[facts["agents"].index(agent)]
    return {key: np.stack([found[agent] for agent in agents]) for key, found in rows.items()}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
