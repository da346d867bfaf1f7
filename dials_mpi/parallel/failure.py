"""Failure is loud and whole: one rank's exception ends the job.

Without this an exception on one rank leaves the others waiting for it in a collective for ever.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

EXIT_FAILURE = 1
_SECONDS_TO_FORWARD = 1.0


class AbortOnException:
    """Context manager: any exception that leaves it prints one line and aborts all ranks of `comm`.

    What all ranks know alike, bad input for example, is to be raised outside.

    Args:
        comm: the communicator to abort; its rank is named.
        clock: tells which phase failed.
    """

    def __init__(self, comm, clock):
        self._comm = comm
        self._clock = clock
        self.record: Callable[[str, str], Path] | None = None
        """Saves the line and the traceback and tells where; None: the traceback is printed before the line."""

    def __enter__(self) -> "AbortOnException":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            return
        try:
            self._report(kind, error, trace)
        finally:
            time.sleep(_SECONDS_TO_FORWARD)  # a launcher that hears of the abort drops what it has not yet read
            self._comm.Abort(EXIT_FAILURE)

    def _report(self, kind, error, trace) -> None:
        details = "".join(traceback.format_exception(kind, error, trace))
        place = traceback.extract_tb(trace)[-1]
        message = (
            f"rank {self._comm.rank} failed in phase {self._clock.phase}: {kind.__name__}: {error} "
            f"({os.path.relpath(place.filename)}:{place.lineno})"
        )
        try:
            hint = f"; traceback in {self.record(message, details)}" if self.record else ""
        except Exception:  # the disk may be what failed; the message has to come out all the same
            hint = ""
        print(f"{'' if hint else details}dials_mpi: {message}{hint}", file=sys.stderr, flush=True)
