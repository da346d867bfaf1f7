"""metrics.jsonl and timing.jsonl: one JSON object a line, append-only.

What was measured and when it was measured stand in two files, so that two runs of one seed have the same bytes in the
first whatever the speed of their machines.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.errors import UserError

_NAMES = ("metrics.jsonl", "timing.jsonl")


class Metrics:
    """Appends records to a run's files; every line has left this process when `write` returns.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path):
        self._files = [(folder / name).open("ab") for name in _NAMES]
        self._digests = [hashlib.sha256((folder / name).read_bytes()) for name in _NAMES]

    def write(self, step: int, phase: str, seconds: float, **values: Any) -> None:
        """One record of `phase` after `step` training steps per agent, `seconds` into the run.

        Arrays become lists; float32 values are written with the digits that tell them apart.
        """
        record = {"step": step, "phase": phase, **{key: _plain(value) for key, value in values.items()}}
        for file, digest, line in zip(self._files, self._digests, (record, _timing(record, seconds)), strict=True):
            content = json.dumps(line, allow_nan=False).encode() + b"\n"
            file.write(content)
            file.flush()
            digest.update(content)

    def written(self) -> dict[str, dict[str, Any]]:
        """`size` and `sha256` of what each file holds, all of it on the disk for good."""
        for file in self._files:
            os.fsync(file.fileno())
        return {
            name: {"size": file.tell(), "sha256": digest.hexdigest()}
            for name, file, digest in zip(_NAMES, self._files, self._digests, strict=True)
        }

    def close(self) -> None:
        for file in self._files:
            file.close()


def cut_back(folder: Path, written: dict[str, dict[str, Any]]) -> None:
    """Cuts the files of a run to what they were at a checkpoint; to nothing, if that says nothing of them.

    Args:
        folder: the run directory.
        written: `Metrics.written` as of the checkpoint.

    Raises:
        UserError: a file does not begin with what it held then; nothing is cut.
    """
    for name, facts in written.items():
        path = folder / name
        try:
            content = path.read_bytes()[: facts["size"]] if path.exists() else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore it, or start a new run") from error
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            what = "is damaged" if len(content) == facts["size"] else f"has lost records: {len(content)} bytes"
            raise UserError(
                f"{path}: {what} (at the checkpoint it had {facts['size']} bytes); restore it, or start a new run"
            )
    for name in _NAMES:
        with (folder / name).open("ab") as file:
            file.truncate(written.get(name, {}).get("size", 0))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run in order; a last line that was cut off by a crash is left out."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _timing(record: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {"step": record["step"], "phase": record["phase"], "seconds": round(seconds, 3)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.integer):
        return int(value)
    return value
