"""What came out of runs: grouped by what they tried, averaged over seeds. Needs numpy alone."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.algorithms.registry import METHODS, owners
from dials_mpi.analysis.reading import Run, Series, open_run
from dials_mpi.errors import UserError

_NO_MATTER = ("seed", "evaluation.", "checkpoint.", "log.", "parallel.", "dataset.keep_rounds")
"""Settings, or beginnings of them, that do not change what is learned; runs that differ in them belong together."""
_SETTINGS_IN_A_LABEL = 2
"""Groups that differ in more than that are told apart by the names of their runs."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seeds."""

    env: str
    agents: int
    mode: str
    interval: int | None
    """Steps per agent between two rounds of its method, F in DIALS; None for methods without rounds."""
    others: tuple[tuple[str, Any], ...]
    """Settings by which it differs from groups with the same four values above; mostly none."""
    runs: tuple[Run, ...]
    """In the order of their seeds, each seed once."""

    @property
    def label(self) -> str:
        """What tells it from other groups of its domain and number of agents, for legends."""
        parts = [mode_name(self.mode)]
        if self.interval is not None:
            parts.append(f"F = {short(self.interval)}")
        if len(self.others) > _SETTINGS_IN_A_LABEL:
            names = [run.name for run in self.runs]
            return f"{', '.join(parts)}: {', '.join(names[:2])}{' …' if len(names) > 2 else ''}"
        parts += [f"{key.rpartition('.')[2]} = {_plainly(key, value)}" for key, value in self.others]
        return ", ".join(parts)

    @property
    def domain(self) -> str:
        """The domain's name; of a user's own, that of its class."""
        return self.env.rpartition(":")[2]

    @property
    def seeds(self) -> list[int]:
        return [run.configuration["seed"] for run in self.runs]


@dataclass(frozen=True)
class Curve:
    """A figure over time, averaged over the seeds of a group at the K steps that all of them have."""

    steps: np.ndarray
    """[K] int64, training steps per agent."""
    hours: np.ndarray
    """[K] float64, mean over seeds of the time since the start of the run."""
    mean: np.ndarray
    """[K] float64."""
    standard_error: np.ndarray
    """[K] float64, of `mean` over seeds; NaN with a single one."""
    n_seeds: int

    def __len__(self) -> int:
        return len(self.steps)


def open_runs(paths: Iterable[Path]) -> list[Run]:
    """Opens run directories, each once, and checks that their configurations say what grouping needs.

    Raises:
        UserError: one of them is no run directory, is damaged, or its configuration lacks a key.
    """
    runs = [open_run(path) for path in {path.resolve(): path for path in paths}.values()]
    for run in runs:
        for key in ("env", "mode", "seed", "steps", *filter(None, (_rounds(run),))):
            if key not in flat(run.configuration):
                raise UserError(f"{run.path / 'config.yaml'}: has no {key}; is it the config.yaml that a run wrote?")
    return runs


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Puts runs together that differ in their seeds alone.

    Runs of one (env, agents, mode, F) make one group, unless they differ in some other setting that matters.

    Returns:
        The groups, in the order in which they are shown, and notes for the user on what was left out.
    """
    notes = []
    by_key: dict[tuple, list[Run]] = {}
    for run in runs:
        c = run.configuration
        interval = flat(c)[_rounds(run)] if _rounds(run) else None
        by_key.setdefault((c["env"], c["agents"], c["mode"], interval), []).append(run)
    order = sorted(METHODS, key=lambda mode: not METHODS[mode].learns_on_gs)  # the global simulator comes first
    groups = []
    for key in sorted(by_key, key=lambda k: (k[0], k[1], order.index(k[2]) if k[2] in order else 9, k[3] or 0)):
        members = by_key[key]
        varying = [
            name
            for name in differences([run.configuration for run in members])
            if not name.startswith(_NO_MATTER) and not _unused(key[2], name)
        ]
        parts: dict[tuple, list[Run]] = {}
        for run in members:
            values = flat(run.configuration)
            parts.setdefault(tuple((name, values.get(name)) for name in varying), []).append(run)
        for others, same in sorted(parts.items(), key=lambda item: repr(item[0])):
            groups.append(Group(*key, others, one_of_each_seed(same, notes)))
    return groups, notes


def mode_name(mode: str) -> str:
    """As the papers have it."""
    return METHODS[mode].name if mode in METHODS else mode


def one_of_each_seed(runs: Sequence[Run], notes: list[str]) -> tuple[Run, ...]:
    """Runs in the order of their seeds; of two of one seed, which are not independent, the one that has come further.

    Args:
        notes: a line is added for each run that is left out.
    """
    chosen: dict[int, Run] = {}
    for run in sorted(runs, key=reached, reverse=True):
        seed = run.configuration["seed"]
        if seed in chosen:
            notes.append(f"{run.path}: left out, seed {seed} stands for {chosen[seed].path} already")
        else:
            chosen[seed] = run
    return tuple(chosen[seed] for seed in sorted(chosen))


def average(runs: Sequence[Run], phase: str, key: str) -> Curve:
    """A figure (see `Run.series`) averaged over runs at the steps that all of them have; runs without it are left out.

    Nothing is interpolated: a step that one of the runs does not have is left out.
    """
    series = [s for s in (run.series(phase, key) for run in runs) if len(s)]
    if not series:
        nothing = np.zeros(0)
        return Curve(nothing.astype(np.int64), nothing, nothing, nothing, 0)
    steps = functools.reduce(np.intersect1d, [s.steps for s in series])
    values, seconds = np.stack([_at(s, steps) for s in series], axis=1)
    return Curve(steps, seconds.mean(axis=0) / 3600, values.mean(axis=0), standard_error(values), len(series))


def average_by_agent(runs: Sequence[Run], phase: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [K] and each agent's figure [K, N], averaged over the runs that have it, at the steps that all have."""
    series = [s for s in (run.series(phase, key, per_agent=True) for run in runs) if len(s)]
    if not series:
        return np.zeros(0, np.int64), np.zeros((0, runs[0].n_agents))
    steps = functools.reduce(np.intersect1d, [s.steps for s in series])
    return steps, np.mean([_at(s, steps)[0] for s in series], axis=0)


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over axis 0, [n, …] → […]; NaN for n < 2."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def mean_over_training(steps: np.ndarray, values: np.ndarray) -> float:
    """Mean of a figure over the steps of training: the area under its curve [K], divided by its length."""
    if len(steps) < 2:
        return float(values.mean())
    return float(((values[1:] + values[:-1]) / 2 * np.diff(steps)).sum() / (steps[-1] - steps[0]))


def references(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """Mean return of each hand-coded controller and its standard error over episodes, averaged over runs."""
    found: dict[str, list[tuple[float, float]]] = {}
    # Runs of one seed, in other modes for example, play the same episodes; runs of other seeds play others, so that the
    # errors are independent.
    for run in {(run.configuration["env"], run.n_agents, run.configuration["seed"]): run for run in runs}.values():
        for controller, figures in run.references.items():
            found.setdefault(controller, []).append(figures)
    return {
        controller: (float(np.mean([m for m, _ in rows])), float(np.hypot.reduce([e for _, e in rows]) / len(rows)))
        for controller, rows in found.items()
    }


def share_above(returns: Sequence[float], reference: np.ndarray) -> float:
    """Share of agents whose mean return is above what a reference earns at their place, not only equal to it.

    Places differ: a light at the border of the city has less traffic than one in its middle.

    Args:
        returns, reference: [N].
    """
    return float((np.asarray(returns) > reference).mean())


def share_above_reference(run: Run) -> float | None:
    """`share_above` of the last evaluation and the best hand-coded controller; None without either."""
    returns = run.series("evaluate", "mean_return", per_agent=True).values
    reference = run.best_reference
    return None if reference is None or not len(returns) else share_above(returns[-1], reference)


def reached(run: Run) -> int:
    """Training steps per agent that the run has records of."""
    return max((record["step"] for record in run.records), default=0)


def hours(run: Run) -> float | None:
    """Wall time so far, without that between a stop and a resumption; None before the first record."""
    seconds = [record["seconds"] for record in run.records]
    summary = run.facts.get("summary")
    if summary and not run.facts.get("resumed"):
        seconds.append(summary["wall_seconds"])
    return max(seconds) / 3600 if seconds else None


def speed(run: Run) -> float | None:
    """Training steps of all agents together per second of wall time, evaluations included; None before the first."""
    spent = hours(run)
    return reached(run) * run.n_agents / (3600 * spent) if spent and reached(run) else None


def memory(run: Run) -> list[float] | None:
    """Peak memory of each rank in MiB; None for a run that left no closing summary."""
    return run.facts.get("summary", {}).get("memory_mib_per_rank")


def cores(run: Run) -> int | None:
    """How many the ranks could keep busy, of a resumed run in the end; None where there is no closing summary."""
    summary = run.facts.get("summary")
    return round(3600 * summary["core_hours"] / summary["wall_seconds"]) if summary else None


def flat(configuration: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"ppo": {"clip": 0.2}}` → `{"ppo.clip": 0.2}`; lists become tuples."""
    result = {}
    for key, value in configuration.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return result


def differences(configurations: Sequence[dict[str, Any]]) -> list[str]:
    """Keys with two values or more. One that is missing somewhere, in a run of an older version, does not count."""
    tables = [flat(c) for c in configurations]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if len({repr(table[key]) for table in tables if key in table}) > 1]


def state_notes(runs: Sequence[Run]) -> list[str]:
    """A line for every run that is not finished or has nothing to show."""
    notes = []
    for run in runs:
        if run.state != "finished":
            notes.append(f"{run.path}: {run.state}, at step {reached(run):,} of {run.configuration['steps']:,}")
        if not len(run.series("evaluate", "mean_return")):
            notes.append(f"{run.path}: no evaluations yet, left out")
    return notes


def shortened_notes(group: Group) -> list[str]:
    """Says so if the average over a group ends before one of its runs."""
    ends = {run.path: run.series("evaluate", "mean_return").steps[-1:] for run in group.runs}
    ends = {path: int(steps[0]) for path, steps in ends.items() if len(steps)}
    common = average(group.runs, "evaluate", "mean_return").steps
    if not ends or (len(common) and common[-1] == max(ends.values())):
        return []
    if not len(common):
        return [f"{group.label}: its runs have no step in common at which they were evaluated"]
    behind = min(ends, key=ends.__getitem__)
    return [f"{group.label}: averaged up to step {common[-1]:,}, no further than {behind} goes; leave it out for more"]


def short(steps: float) -> str:
    """200000 → 200K, 1500000 → 1.5M."""
    unit, name = next(((unit, name) for unit, name in ((1e6, "M"), (1e3, "K")) if abs(steps) >= unit), (1, ""))
    return f"{steps / unit:.6g}{name}"


def _plainly(key: str, value: Any) -> str:
    return "–" if value is None else short(value) if key == "steps" else str(value)


def _rounds(run: Run) -> str | None:
    """The setting that says how far rounds are apart."""
    method = METHODS.get(run.configuration.get("mode"))
    return method.rounds if method else None


def _unused(mode: str, setting: str) -> bool:
    """Whether a mode does not look at a setting; earlier versions wrote those of all methods."""
    method, section = METHODS.get(mode), setting.partition(".")[0]
    if method is None:
        return False
    return setting.startswith(method.unused) or (section not in method.sections and bool(owners(section)))


def _at(series: Series, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and seconds at `steps`, all of which the series has."""
    _, first = np.unique(series.steps, return_index=True)
    rows = first[np.searchsorted(series.steps[first], steps)]
    return series.values[rows], series.seconds[rows]
