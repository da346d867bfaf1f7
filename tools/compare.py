#!/usr/bin/env python3
"""Two runs, or two sides of several seeds each: what was set differently, and what came of it.

    python tools/compare.py runs/BEFORE runs/AFTER
    python tools/compare.py --a runs/before-seed* --b runs/after-seed* --fail-if-worse 2
    python tools/compare.py runs/A runs/B --only "final return" --only speed --fail-if-worse 5

Figures: final return and its mean over training on the global simulator, cross-entropy of the last AIP training on
held-out data, speed, time and memory. Runs are paired by seed; with two pairs or more there are a paired t-test and a
test by flipping signs, which asks nothing of the distribution but cannot go below p = 2/2^n with n seeds. Speed, time
and memory are shown but not judged where the sides lay differently on ranks and cores (mpirun -n, parallel.*).

Exit codes: 0 done; 1 with --fail-if-worse: a figure of B is worse by more than that, or B does not have it; 2 bad
input.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dials_mpi.analysis.comparison import FIGURES, Comparison, compare, configuration_changes, layouts_of
from dials_mpi.analysis.offline import Parser, run_tool, tell
from dials_mpi.analysis.reading import Run
from dials_mpi.analysis.results import one_of_each_seed, open_runs, standard_error, state_notes
from dials_mpi.errors import UserError

NAME = "compare"


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    p.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="two run directories, A and B")
    p.add_argument("--a", metavar="RUN", type=Path, nargs="+", help="run directories of side A, a seed each")
    p.add_argument("--b", metavar="RUN", type=Path, nargs="+", help="of side B")
    p.add_argument(
        "--fail-if-worse",
        metavar="PERCENT",
        type=percent,
        help="exit with 1 if a figure of B is worse than A's by more than this (never)",
    )
    p.add_argument(
        "--only",
        metavar="FIGURE",
        action="append",
        choices=list(FIGURES),
        help=f"compare this figure alone; can be repeated: {', '.join(FIGURES)}",
    )
    return p


def percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0 on")
    return value


def work(arguments: argparse.Namespace) -> int:
    sides = arguments.a, arguments.b
    if not arguments.a and not arguments.b and len(arguments.runs) == 2:
        sides = arguments.runs[:1], arguments.runs[1:]
    elif not all(sides) or arguments.runs:
        raise UserError("give two run directories, or some after --a and some after --b")
    notes: list[str] = []
    a, b = (one_of_each_seed(open_runs(side), notes) for side in sides)
    for key in ("env", "agents"):
        values = list(dict.fromkeys(run.configuration[key] for run in (*a, *b)))
        if len(values) > 1:
            raise UserError(f"{key}: {' and '.join(map(str, values))} cannot be compared figure by figure")
    comparisons, more = compare(a, b)
    shown = [c for c in comparisons if c.name in (arguments.only or FIGURES)]
    if apart := [c for c in shown if c.layouts]:
        said = "{}: neither side is better or worse, as their layouts differ (A: {}; B: {})"
        said = said.format(", ".join(c.name for c in apart), *apart[0].layouts)
        more.append(said + ("" if arguments.fail_if_worse is None else "; --fail-if-worse does not count them"))
    tell(NAME, [*notes, *state_notes([*a, *b]), *more])
    for letter, side in (("A", a), ("B", b)):
        seeds = ", ".join(str(run.configuration["seed"]) for run in side)
        print(f"{letter}: {', '.join(str(run.path) for run in side)} (seed{'s' if len(side) > 1 else ''} {seeds})")
    _print_settings(a, b)
    worse = [c for c in shown if arguments.fail_if_worse is not None and 100 * c.worse_by > arguments.fail_if_worse]
    _print_figures(shown)
    if min(len(a), len(b)) < 3:
        print("Fewer than three seeds on a side: what differs may be chance.")
    for c in worse:
        print(f"{NAME}: {c.name} is worse by {100 * c.worse_by:.1f} %", file=sys.stderr)
    lost = [c for c in shown if arguments.fail_if_worse is not None and len(c.a) and not len(c.b)]
    for c in lost:
        print(f"{NAME}: {c.name}: A has it, B does not", file=sys.stderr)
    return 1 if worse or lost else 0


def _print_settings(a: Sequence[Run], b: Sequence[Run]) -> None:
    changes = [change for change in configuration_changes(a, b) if change[0] != "seed"]
    if layouts := layouts_of(a, b):
        changes.append(("layout", *([text] for text in layouts)))
    print("\nsettings: no differences" if not changes else "\nsettings")
    width = max((len(key) for key, _, _ in changes), default=0)
    for key, *values in changes:
        before, after = (", ".join(str(value) for value in side) or "not there" for side in values)
        print(f"  {key:{width}}  {before} → {after}")


def _print_figures(comparisons: Sequence[Comparison]) -> None:
    print(f"\n{'':28}{'A':>20}{'B':>20}{'B - A':>20}{'change':>10}")
    for c in comparisons:
        difference = _mean(c.pairs) if len(c.pairs) else ""
        change = "" if math.isnan(c.change) else f"{100 * c.change:+.1f} %"
        direction = "" if c.change == 0 else "other layout" if c.layouts else "worse" if c.worse_by > 0 else "better"
        direction = direction if change else ""
        print(f"{c.name:28}{_mean(c.a):>20}{_mean(c.b):>20}{difference:>20}{change:>10}  {direction}")
        if len(c.a) and len(c.b):
            print(f"{'':4}{c.unit + ', ' if c.unit else ''}{c.verdict}")


def _mean(values: np.ndarray) -> str:
    """Mean ± standard error, as far as there are values."""
    if not len(values):
        return "–"
    mean, error = values.mean(), float(standard_error(values))
    digits = max(0, 3 - math.floor(math.log10(abs(mean)))) if mean else 3
    digits = min(digits, 4)
    return f"{mean:,.{digits}f}" + ("" if math.isnan(error) else f" ± {error:,.{digits}f}")


def main(arguments: list[str] | None = None) -> int:
    return run_tool(parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
