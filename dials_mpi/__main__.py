"""Entry point: parse → run → exit code."""

import os
import re
import sys

from dials_mpi.parallel.failure import EXIT_FAILURE
from dials_mpi.parallel.launcher import check_size, launched_rank
from dials_mpi.parallel.threads import keep_freed_memory, one_thread

one_thread(os.environ)  # before numpy and torch are imported
keep_freed_memory()

from dials_mpi import cli  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.evaluate import evaluate  # noqa: E402
from dials_mpi.run import run  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the program with the arguments of a command line; returns the exit code, the same on every rank."""
    argv = sys.argv[1:] if argv is None else argv
    evaluates = argv[:1] == ["evaluate"]
    arguments = cli.evaluation_parser().parse_args(argv[1:]) if evaluates else cli.parser().parse_args(argv)
    try:
        if evaluates:
            return _evaluate(arguments)
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"no MPI library to be loaded ({_cause(error)}); load your cluster's MPI module, or "
                "pip install 'dials_mpi[mpi]' for one from a wheel"
            ) from None
        check_size(MPI.COMM_WORLD.size)
        return run(MPI.COMM_WORLD, arguments)
    except UserError as error:
        if launched_rank() == 0:
            print(f"dials_mpi: {error}", file=sys.stderr, flush=True)
        return cli.EXIT_USAGE


def _evaluate(arguments) -> int:
    try:
        return evaluate(arguments)
    except FloatingPointError as error:  # what a domain gave; a run reports it itself
        print(f"dials_mpi: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILURE


def _cause(error: Exception) -> str:
    """The line of mpi4py's message that helps: a library which is there but does not load, else the last one tried."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines[1:] if not re.match(r"\S*libmpi\S*: cannot open", line)), lines[-1])


if __name__ == "__main__":
    sys.exit(main())
