"""Failure is loud and whole: one rank's exception ends the job.

Without this an exception on one rank leaves the others waiting for it in a collective for ever.
"""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

EXIT_FAILURE = 1


def abort_on_exception(comm, phase, folder: Path | None = None) -> None:
    """From now on an uncaught exception on this rank prints one line and aborts all ranks of `comm`.

    Args:
        comm: the communicator to abort; its rank is named.
        phase: callable that tells what this rank was doing.
        folder: where the traceback is written, as `failure_rank_<r>.txt`; None: it is printed.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        details = "".join(traceback.format_exception(kind, error, trace))
        place = traceback.extract_tb(trace)[-1] if trace else None
        where = f" at {os.path.relpath(place.filename)}:{place.lineno}" if place else ""
        message = f"dials_mpi: rank {comm.rank} failed in phase {phase()!r}: {kind.__name__}: {error}{where}"
        if folder is None:
            message = f"{details}{message}"
        else:
            file = folder / f"failure_rank_{comm.rank}.txt"
            try:
                file.write_text(details, encoding="utf-8")
                message += f"; traceback in {file}"
            except OSError:
                message = f"{details}{message}"
        print(message, file=sys.stderr, flush=True)
        comm.Abort(EXIT_FAILURE)

    sys.excepthook = hook
