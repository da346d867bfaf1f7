"""One flag for everything that asks a run to stop: signals, a time limit, files."""

import os
import signal
import sys
import time
from pathlib import Path

STOP_FILE = "STOP"
REQUEUE_FILE = "REQUEUE"
"""A job script asks with it for a stop of which the batch system is to make a pause."""
REASONS = (
    signal.SIGTERM.name,
    signal.SIGUSR1.name,
    f"the file {REQUEUE_FILE}",
    signal.SIGINT.name,
    "--max-hours",
    f"the file {STOP_FILE}",
)
"""What asks for a stop, in words. Of several reasons the last one counts: a person's before the batch system's."""
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Unfinished(Exception):  # noqa: N818 - not an error: the run is to be resumed
    """Raised on all ranks alike when a run stops before its end, with one of `REASONS`; its checkpoint is written."""


class EndedBySignals:
    """Where there is nothing to write down: the signals that ask a run to stop end this process, as they do by default,
    as soon as what `with` and `finally` hold has been given back.

    A context manager; it ends the process when the exception comes to it.
    """

    def __enter__(self) -> "EndedBySignals":
        self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is _Signalled:
            signal.signal(error.number, signal.SIG_DFL)
            sys.stdout.flush()
            os.kill(os.getpid(), error.number)

    def _heard(self, number: int, frame) -> None:
        for each in _SIGNALS:  # launchers send a second one
            signal.signal(each, signal.SIG_IGN)
        raise _Signalled(number)


class _Signalled(BaseException):
    """Not an error of anything that might be tried again."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class StopFlag:
    """Whether this rank has been asked to stop. That does nothing by itself: all ranks agree at a boundary.

    A context manager: inside, SIGTERM, SIGUSR1 and SIGINT are heard and do nothing else; a second SIGINT interrupts.

    Args:
        max_hours: of running, or None.
    """

    def __init__(self, max_hours: float | None = None):
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._folder: Path | None = None
        self._signals: set[str] = set()

    def __enter__(self) -> "StopFlag":
        self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, folder: Path) -> None:
        """From now on the files `STOP` and `REQUEUE` in the run directory are reasons, too."""
        self._folder = folder

    @property
    def reason(self) -> int:
        """What asked for a stop, counted in `REASONS` from 1; 0 if nothing did."""
        found = {*self._signals}
        if self._deadline is not None and time.monotonic() >= self._deadline:
            found.add("--max-hours")
        if self._folder:
            found |= {f"the file {name}" for name in (REQUEUE_FILE, STOP_FILE) if (self._folder / name).exists()}
        return max((REASONS.index(reason) + 1 for reason in found), default=0)

    def _heard(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and name in self._signals:
            raise KeyboardInterrupt
        self._signals.add(name)
