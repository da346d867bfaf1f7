"""One flag for everything that asks a run to stop: signals, a time limit, a file."""

import signal
import time
from pathlib import Path

STOP_FILE = "STOP"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Unfinished(Exception):  # noqa: N818 - not an error: the run is to be resumed
    """Raised on all ranks alike when a run stops before its end; its checkpoint is written."""


class StopFlag:
    """Whether this rank has been asked to stop. That does nothing by itself: all ranks agree at a boundary.

    A context manager: inside, SIGTERM, SIGUSR1 and SIGINT are heard and do nothing else; a second SIGINT interrupts.

    Args:
        max_hours: of running, or None.
    """

    def __init__(self, max_hours: float | None = None):
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._file: Path | None = None
        self._signal: str | None = None

    def __enter__(self) -> "StopFlag":
        self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, folder: Path) -> None:
        """From now on the file `STOP` in the run directory is a reason, too."""
        self._file = folder / STOP_FILE

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
