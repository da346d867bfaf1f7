"""Arguments, and what people read of them. Imports neither torch nor MPI, so that `--help` is quick on a login node."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dials_mpi import __version__
from dials_mpi.algorithms.registry import METHODS
from dials_mpi.config import load_yaml, mode_of, parse_override, with_companion
from dials_mpi.errors import UserError
from dials_mpi.parallel.launcher import launched_rank
from dials_mpi.simulators.registry import BUILT_IN, shipped_configurations

EXIT_USAGE = 2
RUNS = Path("runs")
EXIT_UNFINISHED = 75
"""EX_TEMPFAIL: stopped before the end, to be resumed."""

_DESCRIPTION = """\
Train many agents of a networked system in parallel, by distributed influence-augmented local simulators (DIALS) or by
other methods (--mode).

Rank 0 runs the global simulator; every other rank owns agents and trains them: in mode dials on their own local
simulators, fed by influence predictors that are retrained every predictor.interval steps (Algorithm 1 of Suau et al.,
2022). With many agents others help rank 0 to collect data (parallel.collectors), and it owns agents too where a core is
left for it (parallel.coordinator_works); no result depends on who does what."""

_EPILOG = """\
examples:
  python -m dials_mpi --env warehouse                           4 agents in one process
  mpirun -n 5 python -m dials_mpi --env warehouse               4 agents, each on a rank of its own
  mpirun -n 3 python -m dials_mpi --env warehouse --agents 25   25 agents on 2 ranks, beside the coordinator
  mpirun -n 5 python -m dials_mpi --env traffic                 4 traffic lights in SUMO
  mpirun -n 9 python -m dials_mpi --env platoon                 8 vehicles, by DPPO
  mpirun -n 26 python -m dials_mpi --config traffic_large       25 of them, with the settings for many
  python -m dials_mpi --env warehouse --set ppo.learning_rate=1e-3 --set evaluation.episodes=100
  python -m dials_mpi --env my_package.my_module:MyDomain --agents 9
  mpirun -n 5 python -m dials_mpi --resume runs/NAME            goes on where runs/NAME was stopped
  python -m dials_mpi evaluate runs/NAME                        what its policies earn; see evaluate --help

A run writes runs/NAME/: config.yaml (every setting), run.json, metrics.jsonl, timing.jsonl, policies.npz,
influence/agent_*.h5 and checkpoints/. SIGTERM, SIGUSR1, Ctrl-C, --max-hours or a file runs/NAME/STOP stop it with a
checkpoint within about checkpoint.boundary_seconds; a second Ctrl-C at once.
Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped before the end: resume it."""


_EVALUATE_DESCRIPTION = """\
Play the policies of a run on the global simulator again, on new episodes, beside the domain's hand-coded controllers:
mean return over agents, its standard error over episodes, and the lowest and highest agent. The run is only read."""

_EVALUATE_EPILOG = """\
With --agents the policies are placed on a grid of another size. A corner takes the policy of the same corner, an edge
that of the same edge, an inner place that of an inner one; among these the one in the same relative position. A run
whose grid has no inner rows or columns (2×2) lends the policies of the nearer side. Domains without a grid count as one
row. Every agent keeps a memory of its own, whoever's policy it acts by.

examples:
  python -m dials_mpi evaluate runs/NAME --episodes 400
  python -m dials_mpi evaluate runs/NAME --best --agents 100 --out transfer.json
  python -m dials_mpi evaluate runs/NAME --checkpoint 400000 --set domain.item_probability=0.05

Exit codes: 0 done, 2 bad input."""


ENV_HELP = (
    f"domain: {', '.join(BUILT_IN)}, or your own as package.module:ClassName, looked for on Python's path and in the "
    "current directory. Runs and files that name your own count only if it is named here, too"
)
CONFIG_HELP = (
    "YAML file laid over the domain's own configuration, or the name of a shipped one, as traffic_large; can be "
    "repeated, later ones win"
)


class _Parser(argparse.ArgumentParser):
    def print_help(self, file=None):
        """Once, not once a rank."""
        if launched_rank() == 0:
            super().print_help(file)

    def error(self, message: str):
        """One line, from one of the ranks."""
        if launched_rank() == 0:
            print(f"dials_mpi: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="python -m dials_mpi",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--env", help=ENV_HELP)
    p.add_argument(
        "--mode",
        choices=tuple(METHODS),
        help="; ".join(f"{mode}: {method.summary}" for mode, method in METHODS.items())
        + f" (default: what the domain's configuration says, else {next(iter(METHODS))})",
    )
    p.add_argument("--agents", type=whole, metavar="N", help="number of agents (default: ranks - 1; 4 in one process)")
    p.add_argument("--steps", type=whole, metavar="N", help="training steps per agent (default: 1,000,000)")
    p.add_argument("--seed", type=whole, metavar="N", help="one seed for everything (default: 0)")
    p.add_argument("--config", type=path, action="append", default=[], metavar="FILE", help=CONFIG_HELP)
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="one setting, as section.key=value; can be repeated, comes last",
    )
    p.add_argument("--name", metavar="NAME", help="name of the run directory (default: from domain, agents, mode, …)")
    p.add_argument("--runs", type=path, metavar="DIR", help=f"where run directories go (default: {RUNS})")
    p.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the agents' networks and rollouts are; with cuda the ranks of a machine share its GPUs in turn, "
        "and results are no longer the same to the bit (default: cpu)",
    )
    p.add_argument(
        "--resume",
        metavar="RUN",
        help="go on from the newest whole checkpoint of a run directory; auto: of --name if there is one, else start",
    )
    p.add_argument(
        "--max-hours",
        type=number(0.0),
        metavar="H",
        help="stop with a checkpoint and exit code 75 after H hours (no limit)",
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration, layout, memory and time estimate, from about a minute's measurements at most; train "
        "nothing",
    )
    p.add_argument("--version", action="version", version=f"dials_mpi {__version__}")
    return p


def evaluation_parser() -> argparse.ArgumentParser:
    """Of `python -m dials_mpi evaluate`."""
    p = _Parser(
        prog="python -m dials_mpi evaluate",
        description=_EVALUATE_DESCRIPTION,
        epilog=_EVALUATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("run", type=path, metavar="RUN", help="run directory")
    add_env(p)
    which = p.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="policies of the best evaluation, instead of the last")
    which.add_argument(
        "--checkpoint", type=at_least(0), metavar="STEP", help="policies of the checkpoint of that training step"
    )
    p.add_argument("--episodes", type=at_least(2), metavar="N", help="episodes of each (default: as the run evaluated)")
    p.add_argument(
        "--seed",
        type=at_least(0),
        metavar="N",
        help="of the episodes (default: the run's + 1; the run's own repeats those that chose the best policies)",
    )
    p.add_argument("--argmax", action="store_true", help="agents take their most probable actions, and draw none")
    p.add_argument("--agents", type=at_least(1), metavar="N", help="size of another system, see below")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="domain.KEY=VALUE",
        dest="overrides",
        help="another setting of the domain; can be repeated",
    )
    p.add_argument("--no-references", action="store_true", help="leave the hand-coded controllers out")
    p.add_argument("--out", type=path, metavar="FILE", help="write the results as JSON, too")
    return p


def add_env(parser: argparse.ArgumentParser) -> None:
    """The argument `env` of programs that read a run and build its domain."""
    parser.add_argument(
        "--env",
        help="the run's domain, to be named if it is your own, package.module:ClassName: no file chooses code to "
        "import. Looked for on Python's path and in the current directory",
    )


def path(text: str) -> Path:
    """An argparse type: Path("") would be the current folder, which nobody meant by an empty variable of a script."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def whole(text: str) -> int:
    """An argparse type: integers, in scientific notation as well."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        if (value := float(text)).is_integer():
            return int(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number; write it like 20000 or 2e4")


def at_least(lowest: int) -> Callable[[str], int]:
    """An argparse type: integers from `lowest` on."""

    def integer(text: str) -> int:
        if (value := whole(text)) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is less than {lowest}")
        return value

    return integer


def number(lowest: float) -> Callable[[str], float]:
    """An argparse type: finite numbers from `lowest` on."""

    def finite(text: str) -> float:
        try:
            if lowest <= (value := float(text)) < math.inf:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {lowest:g} on")

    return finite


def _configuration_file(file: Path) -> Path:
    """The file itself or, if it is not there, the shipped configuration of that name."""
    shipped = shipped_configurations()
    if str(file) in shipped and not file.is_file():
        return shipped[str(file)]
    if not file.exists():
        endings = tuple(f"_{method.family}" for method in METHODS.values())
        whole = [name for name in shipped if not name.endswith(endings)]
        raise UserError(f"--config: {file}: cannot be read: No such file or directory; shipped are {', '.join(whole)}")
    return file


def layers(arguments: argparse.Namespace, mode: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The configuration layers that the command line asks for, with where each comes from.

    Args:
        mode: of a run that goes on.
    """
    files = [(str(file), load_yaml(file)) for file in map(_configuration_file, arguments.config)]
    more = []
    for key in ("env", "mode", "agents", "steps", "seed"):
        value = getattr(arguments, key)
        if value is not None:
            more.append((f"--{key}", {key: value}))
    more += [(f"--set {text}", parse_override(text)) for text in arguments.overrides]
    mode = arguments.mode or mode or mode_of([*files, *more])
    return [layer for file in files for layer in with_companion(*file, mode)] + more
