"""A run directory as readers see it: finished, stopped, failed or still going. Needs neither MPI nor torch."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dials_mpi.errors import UserError

_STILL_GOING_SECONDS = 1200
"""A run that is alive writes more often: a checkpoint every ten minutes, unless it is told otherwise."""
_WRITTEN_BY_A_RUN = ("run.json", "metrics.jsonl", "timing.jsonl", "policies.npz", "checkpoints", "influence", "scratch")
"""Signs of life; a report that somebody writes beside them is none."""


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
    def sessions(self) -> list[dict[str, Any]]:
        """What `run.json` says of the run's start and of each resumption: `ranks`, `layout`, `grid_shape` and so on."""
        return [self.facts, *self.facts.get("resumed", [])]

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns in which the agents stand, numbered row by row, as of `Domain.grid_shape`.

        Versions that did not write it had the domain's `rows` and `columns`, or square grids; else it is one row.

        Raises:
            UserError: `run.json` has another number of places than there are agents.
        """
        n, domain = self.n_agents, self.configuration.get("domain") or {}
        for shape in (session["grid_shape"] for session in self.sessions if "grid_shape" in session):
            if not _makes(shape, n):
                raise UserError(f"{self.path / 'run.json'}: grid_shape {shape} is no grid of {n} agents; restore it")
            return tuple(shape)
        for shape in ([domain.get("rows"), domain.get("columns")], [math.isqrt(n)] * 2):
            if _makes(shape, n):
                return tuple(shape)
        return 1, n

    @property
    def state(self) -> str:
        """`finished`, `stopped`, `failed` or `running`; `died` if it says that it runs but has not written for long."""
        state = self.facts.get("state", "unknown")
        if state != "running":
            return state
        items = [self.path / name for name in _WRITTEN_BY_A_RUN]
        newest = max((item.stat().st_mtime for item in items if item.exists()), default=0.0)
        return "running" if time.time() - newest < _STILL_GOING_SECONDS else "died"

    def series(self, phase: str, key: str, per_agent: bool = False) -> Series:
        """A figure over time, for example `series("evaluate", "mean_return")`; of length 0 if there is none yet.

        Args:
            phase: `reference`, `evaluate`, `learn` or `aip`.
            key: of the records of that phase.
            per_agent: each agent's figure instead of the mean.

        Raises:
            UserError: a record of that phase has no such figure, or not one for each agent.
        """
        rows = [record for record in self.records if record["phase"] == phase]
        try:
            values = [(record["per_agent"] if per_agent else record)[key] for record in rows]
            values = np.array(values, np.float64).reshape((len(rows), self.n_agents) if per_agent else len(rows))
        except (KeyError, TypeError, ValueError):
            whose = f", a number for each of {self.n_agents} agents" if per_agent else ", a number"
            raise UserError(
                f"{self.path / 'metrics.jsonl'}: a record of phase {phase!r} has no {key!r}{whose}; "
                "was it written by another version?"
            ) from None
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
    def best_reference(self) -> np.ndarray | None:
        """[N] float64, what the hand-coded controller with the highest mean return earns at each place; None without.

        Raises:
            UserError: as of `series`.
        """
        means = self.series("reference", "mean_return").values
        if not len(means):
            return None
        return self.series("reference", "mean_return", per_agent=True).values[means.argmax()]

    @property
    def dataset_files(self) -> list[Path]:
        """The agents' influence datasets, in the order of their ids."""
        return sorted((self.path / "influence").glob("agent_*.h5"))


def _makes(shape: Any, n_agents: int) -> bool:
    """Whether it is rows and columns of a grid of so many agents."""
    whole = isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) and size > 0 for size in shape)
    return whole and shape[0] * shape[1] == n_agents


def open_run(path: Path) -> Run:
    """Reads a run directory.

    Raises:
        UserError: it is none, or one of its files is damaged.
    """
    if not (path / "config.yaml").is_file():
        what = "it is a file" if path.is_file() else "there is no such directory"
        what = "it has no config.yaml" if path.is_dir() else what
        raise UserError(f"{path} is no run directory: {what}")
    file = path / "config.yaml"
    try:
        configuration = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(configuration, dict) or not isinstance(configuration.get("agents"), int):
            raise ValueError("no configuration of a run")
        file = path / "run.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not isinstance(facts, dict):
            raise ValueError("no facts of a run")
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = getattr(error, "problem", None) or error  # YAML's whole message has several lines
        raise UserError(f"{file}: cannot be read ({what})") from error
    records = _read(path / "metrics.jsonl", ("step", "phase"))
    timing = _read(path / "timing.jsonl", ("seconds",))
    if len(records) - len(timing) > 1:  # one may be just being written
        raise UserError(
            f"{path / 'timing.jsonl'}: {len(timing)} records, but metrics.jsonl has {len(records)}; restore it"
        )
    merged = [{**record, "seconds": times["seconds"]} for record, times in zip(records, timing, strict=False)]
    return Run(path, configuration, facts, merged)


def _read(file: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of a file, none if it is not there; a last line that is being written is left out.

    Raises:
        UserError: it cannot be read, or a line is no record with these keys.
    """
    records = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        for number, line in enumerate(lines, 1):
            record = json.loads(line)
            if not isinstance(record, dict) or any(key not in record for key in keys):
                raise ValueError(f"line {number}: no record with {' and '.join(keys)}")
            records.append(record)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: cannot be read (line {len(records) + 1}: {error.msg})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    return records
