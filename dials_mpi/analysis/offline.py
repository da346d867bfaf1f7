"""What the offline tools share: their arguments, one line for an error, where their files go."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dials_mpi.errors import UserError


class Parser(argparse.ArgumentParser):
    """Prints the description as it is written, and bad arguments in one line.

    Args:
        name: of the tool, without folder and suffix.
        description: for `--help`; usually the tool's docstring.
    """

    def __init__(self, name: str, description: str):
        super().__init__(
            prog=name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see tools/{self.prog}.py --help)\n")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The argument `runs`."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directories, as runs/NAME")


def run_tool(parser: Parser, work: Callable[[argparse.Namespace], int | None], arguments: Sequence[str] | None) -> int:
    """Parses and works; what the user can mend becomes one line and exit code 2.

    Args:
        work: the tool; returns its exit code, None for 0.
        arguments: of the command line; None: this process's.
    """
    try:
        return work(parser.parse_args(arguments)) or 0
    except UserError as error:
        problem = str(error)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        remedy = "; choose another --out" if any(action.dest == "out" for action in parser._actions) else ""
        problem = f"{error.filename}: {error.strerror}{remedy}"
    print(f"{parser.prog}: {problem}", file=sys.stderr)
    return 2


def tell(name: str, notes: Iterable[str]) -> None:
    """Notes for the user, on stderr, each once."""
    for note in dict.fromkeys(notes):
        print(f"{name}: note: {note}", file=sys.stderr)


def add_figures(parser: argparse.ArgumentParser) -> None:
    """The argument `out` of tools that write figures."""
    parser.add_argument(
        "--out",
        metavar="WHERE",
        help="a folder, with / at its end if it is new, or the beginning of the files' names "
        "(default: figures/, for a single run inside its directory)",
    )


def save_figures(made: Mapping[str, Any], arguments: argparse.Namespace, name: str) -> None:
    """Writes figures and prints their files.

    Args:
        made: matplotlib's figures by kind; None where there was nothing to draw.
        arguments: with those of `add_runs` and `add_figures`.
        name: what the files are called after their kind.
    """
    from dials_mpi.analysis import figures

    for kind, figure in made.items():
        if figure:
            for file in figures.save(figure, _stem(arguments.out, arguments.runs, f"{kind}-{name}")):
                print(file)


def _stem(out: str | None, runs: Sequence[Path], name: str) -> Path:
    """Path of a figure without its suffix: in `out` if that is a folder, else beginning with it.

    Args:
        out: what the user said, None for the default.
        runs: run directories; the figures of a single one go into it.
        name: of the figure.
    """
    if out is None:
        return (runs[0] if len(runs) == 1 else Path()) / "figures" / name
    return Path(out) / name if out.endswith("/") or Path(out).is_dir() else Path(f"{out}-{name}")
