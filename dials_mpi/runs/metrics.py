"""metrics.jsonl and timing.jsonl: one JSON object a line, append-only.

What was measured and when it was measured stand in two files, so that two runs of one seed have the same bytes in the
first whatever the speed of their machines.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


class Metrics:
    """Appends records to a run's files; every line has left this process when `write` returns.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path):
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._timing = (folder / "timing.jsonl").open("a", encoding="utf-8")

    def write(self, step: int, phase: str, seconds: float, **values: Any) -> None:
        """One record of `phase` after `step` training steps per agent, `seconds` into the run.

        Arrays become lists; float32 values are written with the digits that tell them apart.
        """
        record = {"step": step, "phase": phase, **{key: _plain(value) for key, value in values.items()}}
        for file, line in ((self._metrics, record), (self._timing, _timing(record, seconds))):
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()

    def close(self) -> None:
        self._metrics.close()
        self._timing.close()


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
