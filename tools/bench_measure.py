"""What all benchmarks share: figures, and work that is repeated to get them. Imports neither torch nor MPI."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dials_mpi.errors import UserError

USUAL_SECONDS = 0.5
_EVENT = "instructions:u"


@dataclass(frozen=True)
class Figure:
    """A figure that is measured, and what to lay beside it."""

    name: str
    """Within its part."""
    unit: str
    published: float | None = None
    """What the published code reached on one core of such a machine, or in the paper."""
    target: float | None = None
    """What it should be, at least or at most."""
    better: Literal["higher", "lower", "neither"] = "higher"
    about: str = ""
    """Settings that it depends on."""


class Measurement(NamedTuple):
    """Work that gives values of some figures each time it is done."""

    figures: Sequence[Figure]
    once: Callable[[], Iterable[tuple[str, float]]]
    """Does it once; yields values with the names of the figures that they are of."""


@dataclass
class Options:
    """What the user asked for."""

    seconds: float
    """That a rate is measured for, in one repeat. Whole runs are as much longer or shorter than usual."""
    most: float
    """Agents, lights, tiles or ranks; larger sizes are left out."""
    folder: Path | None
    """Where runs and checkpoints are written; None: the temporary folder."""
    instructions: bool = False
    """Count them, too, where one process works."""
    notes: list[str] = field(default_factory=list)
    """Why a figure is missing."""

    def sizes(self, *sizes: int) -> list[int]:
        return [size for size in sizes if size <= self.most]

    def stretched(self, length: float) -> float:
        """The length of a run, for `seconds` instead of the usual ones."""
        return length * self.seconds / USUAL_SECONDS

    def rate(
        self,
        figure: Figure,
        work: Callable[[], object],
        steps: int,
        prepare: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.process_time,
    ) -> Measurement:
        """Steps per second of CPU time, which is what an idle core takes, whatever else the machine is doing.

        Args:
            work: does `steps` steps; repeated for `seconds`, at least once.
            prepare: done before, untimed. By default the work itself: others have just had the caches.
            clock: `time.perf_counter` for work that other processes share in.
        """
        per_step = self.per_step(figure)

        def once():
            (prepare or work)()
            with counted(bool(per_step)) as count:
                calls, begin = 0, clock()
                while (elapsed := clock() - begin) < self.seconds or not calls:
                    work()
                    calls += 1
            yield figure.name, calls * steps / elapsed
            for more in per_step:
                yield more.name, count["instructions"] / (calls * steps)

        return Measurement([figure, *per_step], once)

    def per_step(self, figure: Figure) -> list[Figure]:
        """The figure of the instructions for a step of `figure`, if they are wanted."""
        return [Figure(f"{figure.name}: instructions", "per step", better="lower")] if self.instructions else []


@contextlib.contextmanager
def counted(wanted: bool) -> Iterator[dict[str, float]]:
    """Counts this process's instructions outside the kernel, by perf, which attaches itself before the block begins.

    Yields:
        `instructions`, once the block has ended; nothing if they are not wanted.
    """
    count: dict[str, float] = {}
    if not wanted:
        yield count
        return
    with tempfile.TemporaryDirectory() as folder:
        orders, answers = (Path(folder) / name for name in ("orders", "answers"))
        os.mkfifo(orders)
        os.mkfifo(answers)
        command = ["perf", "stat", "-x,", "-e", _EVENT, "-p", str(os.getpid()), "-D", "-1"]
        command += ["--control", f"fifo:{orders},{answers}"]
        perf = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            with orders.open("w") as order, answers.open() as answer:
                for word in ("enable", "disable"):
                    print(word, file=order, flush=True)
                    answer.readline()
                    if word == "enable":
                        yield count
        finally:
            perf.send_signal(signal.SIGINT)
            said = perf.communicate()[1]
    count["instructions"] = next(float(line.split(",")[0]) for line in said.splitlines() if f",{_EVENT}," in line)


def check_counter() -> None:
    """Raises UserError if this machine does not count instructions."""
    try:
        tried = subprocess.run(["perf", "stat", "-x,", "-e", _EVENT, "true"], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--instructions: perf cannot be started ({error.strerror}); leave it out") from error
    if not any(line[:1].isdigit() and f",{_EVENT}," in line for line in tried.stderr.splitlines()):
        raise UserError("--instructions: this machine has no counter of instructions (perf stat); leave it out")
