"""Two sides of runs, A and B, figure by figure: paired by seed, with what so few seeds can tell. Needs numpy alone."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dials_mpi.analysis import results
from dials_mpi.analysis.reading import Run

_EXACT_UP_TO = 16
"""Seeds; 2¹⁶ sign patterns are gone through at once, of more seeds a sample is."""
_SAMPLED_PATTERNS = 100_000


@dataclass(frozen=True)
class Comparison:
    """One figure on both sides; n seeds stand on both."""

    name: str
    unit: str
    higher_is_better: bool
    a: np.ndarray
    """[n_a] float64, of side A's runs that have the figure; if there are pairs, of their seeds alone."""
    b: np.ndarray
    """[n_b] float64."""
    pairs: np.ndarray
    """[n] float64, B minus A of the seeds that both sides have."""
    layouts: tuple[str, str] | None = None
    """Of A and B, in words, if they differ and the figure depends on them: then neither side is better or worse."""

    @property
    def change(self) -> float:
        """Of the mean, from A to B, relative to A; NaN if a side has nothing."""
        if not len(self.a) or not len(self.b):
            return math.nan
        mean_a = float(self.a.mean())
        difference = float(self.b.mean()) - mean_a
        return difference / abs(mean_a) if mean_a else (0.0 if difference == 0 else math.copysign(math.inf, difference))

    @property
    def worse_by(self) -> float:
        """By how much B is worse than A, relative to A; negative if it is better, NaN if that cannot be said."""
        if self.layouts:
            return math.nan
        return -self.change if self.higher_is_better else self.change

    @property
    def verdict(self) -> str:
        """The tests in words, with their p-values where there are any."""
        n = len(self.pairs)
        if n == 0:
            return "no seed on both sides: no test"
        if n == 1:
            return "1 pair: no test"
        if np.ptp(self.pairs) == 0:
            return f"{n} pairs: all differ by the same"
        t, p = paired_t(self.pairs)
        text = f"{n} pairs: t = {t:.2f}, p = {p:.3f}; sign flips p = {sign_flips(self.pairs):.3f}"
        if n < 6:
            text += f" (not below {2 / 2**n:.3f} with so few)"
        return text


FIGURES: dict[str, tuple[str, bool, Callable[[Run, int], float | None]]] = {
    "final return": ("", True, lambda run, last: _return(run, last)[1]),
    "mean return over training": ("", True, lambda run, last: _return(run, last)[0]),
    "last cross-entropy": ("nats", False, lambda run, _: _cross_entropy(run)),
    "speed": ("agent-steps/s", True, lambda run, _: results.speed(run)),
    "time": ("hours", False, lambda run, _: results.hours(run)),
    "memory of all ranks": ("MiB", False, lambda run, _: _memory(run, sum)),
    "memory of the largest rank": ("MiB", False, lambda run, _: _memory(run, max)),
}
"""Unit, whether more is better, and the figure of a run; returns up to a step that all runs have come to."""


_OF_A_LAYOUT = ("speed", "time", "memory of all ranks", "memory of the largest rank")
"""Figures that are other ones on other ranks; what is learned is not."""


def compare(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[Comparison], list[str]]:
    """Every figure of `FIGURES` on both sides, and notes for the user.

    Returns are compared up to the last step at which all runs were evaluated.

    Args:
        a, b: runs of each side, every seed once.
    """
    notes = []
    evaluated = [run.series("evaluate", "mean_return").steps for run in (*a, *b)]
    evaluated = [steps for steps in evaluated if len(steps)]
    last = int(min(steps[-1] for steps in evaluated)) if evaluated else 0
    if any(steps[-1] != last for steps in evaluated):
        notes.append(f"returns are compared up to step {last:,}, which is as far as every run was evaluated")
    layouts = layouts_of(a, b)
    comparisons = []
    for name, (unit, higher, of) in FIGURES.items():
        sides = [{run.configuration["seed"]: of(run, last) for run in side} for side in (a, b)]
        sides = [{seed: value for seed, value in side.items() if value is not None} for side in sides]
        both = sorted(sides[0].keys() & sides[1].keys())
        values = [np.array([side[seed] for seed in sorted(side)], np.float64) for side in sides]
        pairs = np.array([sides[1][seed] - sides[0][seed] for seed in both], np.float64)
        if len(both) and (len(both) < len(sides[0]) or len(both) < len(sides[1])):
            values = [np.array([side[seed] for seed in both], np.float64) for side in sides]
            notes.append(f"{name}: only seeds on both sides are compared: {', '.join(map(str, both))}")
        comparisons.append(Comparison(name, unit, higher, *values, pairs, layouts if name in _OF_A_LAYOUT else None))
    return comparisons, notes


def layouts_of(a: Sequence[Run], b: Sequence[Run]) -> tuple[str, str] | None:
    """How A and B lay on ranks and cores, in words, if they did not alike; seed by seed where both have it."""
    sides = [{run.configuration["seed"]: _layout(run) for run in side} for side in (a, b)]
    both = sorted(sides[0].keys() & sides[1].keys())
    found = [[side[seed] for seed in both] if both else sorted(set(side.values())) for side in sides]
    if found[0] == found[1]:
        return None
    return tuple("; ".join(dict.fromkeys(side)) for side in found)


def _layout(run: Run) -> str:
    """Of a run, or of each of its sessions if they differ; and on how many cores, if ranks had to take turns."""
    words = list(dict.fromkeys(session["layout"] for session in run.sessions if "layout" in session))
    text = ", then ".join(words) or "not known"
    cores = results.cores(run)
    return f"{text}, on {cores} cores" if cores and cores < run.sessions[-1].get("ranks", 1) else text


def configuration_changes(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[str, list[Any], list[Any]]]:
    """Settings that are not the same on both sides: key, values in A, values in B; none where no run has the key.

    Sections that the methods of one side do not have are left out: the mode tells.
    """
    tables = [[results.flat(run.configuration) for run in side] for side in (a, b)]
    sections = [{key.partition(".")[0] for table in side for key in table} for side in tables]
    changes = []
    for key in dict.fromkeys(key for side in tables for table in side for key in table):
        if any(key.partition(".")[0] not in known for known in sections):
            continue
        found = [{repr(table[key]): table[key] for table in side if key in table} for side in tables]
        if found[0].keys() != found[1].keys():
            changes.append((key, list(found[0].values()), list(found[1].values())))
    return changes


def paired_t(differences: np.ndarray) -> tuple[float, float]:
    """Student's t of n ≥ 2 paired differences, not all the same, and its two-sided p-value with n-1 degrees of freedom.

    The distribution function is the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    n = len(differences)
    t = float(differences.mean() / (differences.std(ddof=1) / math.sqrt(n)))
    freedom = n - 1
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return t, max(0.0, 1 - inside)


def sign_flips(differences: np.ndarray) -> float:
    """Two-sided p-value of the paired permutation test: how often random signs make the mean at least as large.

    Exact up to 16 pairs, from 100,000 patterns drawn with a fixed seed beyond.
    """
    n = len(differences)
    if n <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (_SAMPLED_PATTERNS, n))
        signs[0] = 1.0  # the pattern that was seen is one of them
    sums = np.abs(signs @ differences)
    return float((sums >= abs(differences.sum()) * (1 - 1e-12)).mean())


def _return(run: Run, last: int) -> tuple[float | None, float | None]:
    """Mean over training and last one, up to step `last`."""
    series = run.series("evaluate", "mean_return")
    until = series.steps <= last
    if not until.any():
        return None, None
    values = series.values[until]
    return results.mean_over_training(series.steps[until], values), float(values[-1])


def _cross_entropy(run: Run) -> float | None:
    series = run.series("aip", "cross_entropy_after")
    return float(series.values[-1]) if len(series) else None


def _memory(run: Run, how: Callable[[list[float]], float]) -> float | None:
    ranks = results.memory(run)
    return float(how(ranks)) if ranks else None
