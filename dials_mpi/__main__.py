"""Entry point: parse → run → exit code."""

import os
import sys

# One thread per rank: ranks that share cores would fight over them otherwise (40 times slower was measured). Set before
# numpy and torch read it, and not for people who chose a number themselves.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from dials_mpi import cli  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.parallel.launcher import check_size, launched_rank  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the program with the arguments of a command line; returns the exit code, the same on every rank."""
    arguments = cli.parser().parse_args(argv)
    try:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"no MPI library to be loaded ({str(error).splitlines()[0]}); load your cluster's MPI module, or "
                "pip install 'dials_mpi[mpi]' for one from a wheel"
            ) from None
        from dials_mpi.run import run

        check_size(MPI.COMM_WORLD.size)
        return run(MPI.COMM_WORLD, arguments)
    except UserError as error:
        if launched_rank() == 0:
            print(f"dials_mpi: {error}", file=sys.stderr, flush=True)
        return cli.EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
