"""A run directory as readers see it: finished, stopped, failed or still going. Needs neither MPI nor torch."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dials_mpi.errors import UserError
from dials_mpi.runs.metrics import read_lines

_STILL_GOING_SECONDS = 1200
"""A run that is alive writes more often: a checkpoint every ten minutes, unless it is told otherwise."""


@dataclass(frozen=True)
class Series:
    """One figure of a run over time; rows in the order in which they were written."""

    steps: np.ndarray
    """[K] int64, training steps per agent."""
    seconds: np.ndarray
    """[K] float64, since the start of the run, without the time between a stop and a resumption."""
    values: np.ndarray
    """[K] float64; per agent [K, N]."""

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Run:
    """What a run directory says, as of when it was opened.

    Use `open_run`; a run that is still going can be opened as well, again and again.
    """

    path: Path
    configuration: dict[str, Any]
    """Values of `config.yaml`."""
    facts: dict[str, Any]
    """`run.json`: state, versions, layout, closing summary and so on."""
    records: list[dict[str, Any]]
    """Of `metrics.jsonl`, each with `seconds` out of `timing.jsonl`."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def n_agents(self) -> int:
        return self.configuration["agents"]

    @property
    def state(self) -> str:
        """`finished`, `stopped`, `failed` or `running`; `died` if it says that it runs but has not written for long."""
        state = self.facts.get("state", "unknown")
        if state != "running":
            return state
        newest = max((item.stat().st_mtime for item in self.path.iterdir()), default=0.0)
        return "running" if time.time() - newest < _STILL_GOING_SECONDS else "died"

    def series(self, phase: str, key: str, per_agent: bool = False) -> Series:
        """A figure over time, for example `series("evaluate", "mean_return")`; of length 0 if there is none yet.

        Args:
            phase: `reference`, `evaluate`, `learn` or `aip`.
            key: of the records of that phase.
            per_agent: each agent's figure instead of the mean.
        """
        rows = [record for record in self.records if record["phase"] == phase]
        if per_agent:
            values = [record["per_agent"][key] for record in rows]
            values = np.array(values, np.float64).reshape(len(rows), -1 if rows else self.n_agents)
        else:
            values = np.array([record[key] for record in rows], np.float64)
        steps = np.array([record["step"] for record in rows], np.int64)
        return Series(steps, np.array([record["seconds"] for record in rows], np.float64), values)

    @property
    def references(self) -> dict[str, tuple[float, float]]:
        """Mean return and standard error of each hand-coded controller."""
        return {
            record["controller"]: (record["mean_return"], record["standard_error"])
            for record in self.records
            if record["phase"] == "reference"
        }

    @property
    def dataset_files(self) -> list[Path]:
        """The agents' influence datasets, in the order of their ids."""
        return sorted((self.path / "influence").glob("agent_*.h5"))


def open_run(path: Path) -> Run:
    """Reads a run directory.

    Raises:
        UserError: it is none, or one of its files is damaged.
    """
    if not (path / "config.yaml").is_file():
        what = "it has no config.yaml" if path.is_dir() else "there is no such directory"
        raise UserError(f"{path} is no run directory: {what}")
    file = path / "config.yaml"
    try:
        configuration = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(configuration, dict) or "agents" not in configuration:
            raise ValueError("no configuration of a run")
        file = path / "run.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        records, timing = (
            read_lines(file) if (file := path / name).exists() else [] for name in ("metrics.jsonl", "timing.jsonl")
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({error})".replace("\n", " ")) from error
    merged = [{**record, "seconds": times["seconds"]} for record, times in zip(records, timing, strict=False)]
    return Run(path, configuration, facts, merged)
