"""metrics.jsonl and timing.jsonl: one JSON object a line, append-only.

What was measured and when it was measured stand in two files, so that two runs of one seed have the same bytes in the
first whatever the speed of their machines.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.errors import UserError


class Metrics:
    """Appends records to a run's files; every line has left this process when `write` returns.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path):
        self._files = [(folder / name).open("a", encoding="utf-8") for name in ("metrics.jsonl", "timing.jsonl")]

    def write(self, step: int, phase: str, seconds: float, **values: Any) -> None:
        """One record of `phase` after `step` training steps per agent, `seconds` into the run.

        Arrays become lists; float32 values are written with the digits that tell them apart.
        """
        record = {"step": step, "phase": phase, **{key: _plain(value) for key, value in values.items()}}
        for file, line in zip(self._files, (record, _timing(record, seconds)), strict=True):
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, all of them on the disk for good."""
        for file in self._files:
            os.fsync(file.fileno())
        return {Path(file.name).name: file.tell() for file in self._files}

    def close(self) -> None:
        for file in self._files:
            file.close()


def cut_back(folder: Path, sizes: dict[str, int]) -> None:
    """Cuts the files of a run to the sizes that they had at a checkpoint; without a size, to nothing.

    Raises:
        UserError: a file is shorter than it was.
    """
    for name in ("metrics.jsonl", "timing.jsonl"):
        size = sizes.get(name, 0)
        with (folder / name).open("a+b") as file:
            if file.seek(0, os.SEEK_END) < size:
                raise UserError(
                    f"{folder / name}: {file.tell()} bytes, but {size} at the checkpoint: records are lost; restore "
                    "the file, or start a new run"
                )
            file.truncate(size)


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
