"""What all benchmarks share: figures, and work that is repeated to get them. Imports neither torch nor MPI."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

USUAL_SECONDS = 0.5


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

        def once():
            (prepare or work)()
            calls, begin = 0, clock()
            while (elapsed := clock() - begin) < self.seconds or not calls:
                work()
                calls += 1
            yield figure.name, calls * steps / elapsed

        return Measurement([figure], once)
