#!/usr/bin/env python3
"""Learning curves of runs, as PNG and PDF in column width.

    python tools/plot_learning.py runs/NAME                      into runs/NAME/figures/
    python tools/plot_learning.py runs/*                         into figures/
    python tools/plot_learning.py runs/* --out paper/fig3 --published

For each domain and number of agents:
  learning-…       mean return on the global simulator against steps and time, standard error over seeds, hand-coded
                   reference; GS, DIALS and untrained DIALS together
  cross-entropy-…  held-out cross-entropy of the AIPs, before and after each retraining
  sweep-…          mean return for each F, if there is more than one

Runs that differ only in their seeds are averaged at the steps that all of them have been evaluated at. Runs that are
still going, were stopped or have died are drawn as far as they came.
"""

import argparse
import sys

from dials_mpi.analysis.offline import Parser, add_figures, add_runs, run_tool, save_figures, tell
from dials_mpi.analysis.results import group_runs, open_runs, shortened_notes, state_notes

NAME = "plot_learning"


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    add_runs(p)
    add_figures(p)
    p.add_argument("--published", action="store_true", help="faint lines where the paper's final returns are")
    return p


def plot(arguments: argparse.Namespace) -> int:
    runs = open_runs(arguments.runs)
    groups, notes = group_runs(runs)
    tell(NAME, [*notes, *state_notes(runs), *(note for group in groups for note in shortened_notes(group))])
    from dials_mpi.analysis import figures

    for key in dict.fromkeys((group.env, group.agents) for group in groups):
        same = [group for group in groups if (group.env, group.agents) == key]
        made = {
            "learning": figures.learning(same, arguments.published),
            "cross-entropy": figures.cross_entropy(same),
            "sweep": figures.sweep(same),
        }
        save_figures(made, arguments, f"{same[0].domain}-{key[1]}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_tool(parser(), plot, arguments)


if __name__ == "__main__":
    sys.exit(main())
