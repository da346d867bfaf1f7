"""One flag for everything that asks a run to stop: signals, a time limit, a file."""

import signal
import time
from pathlib import Path

STOP_FILE = "STOP"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Unfinished(Exception):  # noqa: N818 - not an error: the run is to be resumed
    """Raised on all ranks alike when a run stops before its end; its checkpoint is written."""


class StopFlag:
    """Whether this rank has been asked to stop. Setting it does nothing by itself: all ranks agree at a boundary.

    Args:
        max_hours: of running, or None.
        folder: the run directory, on the rank that looks for the file `STOP` in it; None elsewhere.
    """

    def __init__(self, max_hours: float | None = None, folder: Path | None = None):
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._file = folder and folder / STOP_FILE
        self._signal: str | None = None

    def listen(self) -> None:
        """Takes over SIGTERM, SIGUSR1 and SIGINT. A second SIGINT interrupts at once."""
        for number in _SIGNALS:
            signal.signal(number, self._heard)

    def ignore(self) -> None:
        """Back to what signals do by default."""
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    @property
    def reason(self) -> str | None:
        """What asked for a stop, for people; None if nothing did."""
        if self._signal:
            return self._signal
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "--max-hours"
        if self._file and self._file.exists():
            return f"the file {self._file}"
        return None

    def _heard(self, number: int, frame) -> None:
        if number == signal.SIGINT and self._signal == "SIGINT":
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
