#!/usr/bin/env python3
"""What becomes of return and runtime with more agents, as PNG and PDF in column width.

    python tools/plot_scaling.py runs/*                          into figures/
    python tools/plot_scaling.py runs/warehouse-* --out paper/fig3 --published

For each domain:
  scaling-…  final mean return and hours by number of agents, standard error over seeds, hand-coded reference; hours
             are scaled to 1M steps if runs had different lengths
  phases-…   wall time by phase, out of the closing summaries of runs that have ended

Runs that differ only in their seeds are averaged.
"""

import argparse
import sys

from dials_mpi.analysis.offline import Parser, add_figures, add_runs, run_tool, save_figures, tell
from dials_mpi.analysis.results import group_runs, open_runs, shortened_notes, state_notes

NAME = "plot_scaling"


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    add_runs(p)
    add_figures(p)
    p.add_argument("--published", action="store_true", help="hollow marks where the paper's figures are")
    return p


def plot(arguments: argparse.Namespace) -> int:
    runs = open_runs(arguments.runs)
    groups, notes = group_runs(runs)
    silent = [f"{run.path}: no closing summary, so no time by phase" for run in runs if not run.facts.get("summary")]
    shortened = [note for group in groups for note in shortened_notes(group)]
    tell(NAME, [*notes, *state_notes(runs), *silent, *shortened])
    from dials_mpi.analysis import figures

    for env in dict.fromkeys(group.env for group in groups):
        same = [group for group in groups if group.env == env]
        made = {"scaling": figures.scaling(same, arguments.published), "phases": figures.phases(same)}
        save_figures(made, arguments, same[0].domain)
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_tool(parser(), plot, arguments)


if __name__ == "__main__":
    sys.exit(main())
