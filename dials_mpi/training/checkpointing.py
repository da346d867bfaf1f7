"""What a run is at a boundary, when it is written down, and when it stops: decided and done by all ranks together."""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dials_mpi.config import Configuration
from dials_mpi.learning.optimiser import Adam
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.runs import faults
from dials_mpi.runs.checkpoint import begin, partial_folder, publish, read_agents, shard_name, write_shard
from dials_mpi.runs.directory import versions
from dials_mpi.runs.stopping import REASONS, StopFlag, Unfinished

T = TypeVar("T")


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to go on from."""

    checkpoint: Path
    manifest: dict


@dataclass(frozen=True)
class _Snapshot:
    """One rank's part of a checkpoint, in memory."""

    step: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    """What rank 0 adds to the manifest; empty elsewhere."""


class Checkpointing:
    """One rank's part in the checkpoints of a run.

    Args:
        configuration, layout: the same on every rank.
        rank: this one; rank 0 decides and writes the manifest.
        exchange: joins all ranks.
        clock: books the phase `write`.
        folder: the run directory.
        stop: asked at boundaries whether to go on.
        resumed: the checkpoint to go on from, if there is one.
    """

    def __init__(
        self,
        configuration: Configuration,
        layout: Layout,
        rank: int,
        exchange: Exchange,
        clock,
        folder: Path,
        stop: StopFlag,
        resumed: Resumed | None,
    ):
        self._configuration = configuration
        self._layout = layout
        self._rank = rank
        self._exchange = exchange
        self._clock = clock
        self._folder = folder / "checkpoints"
        self._stop = stop
        self._kept: dict[str, Tensor] = {}
        self._restored: dict[str, np.ndarray] = {}
        manifest = resumed.manifest if resumed else {}
        if resumed and layout.agents(rank):
            self._restored = read_agents(resumed.checkpoint, manifest, layout.agents(rank))
        self.start: int = manifest.get("step", 0)
        """Training steps per agent that the run resumed from had done."""
        self.reached = self.start
        """Training steps per agent done at the last boundary."""
        self.best_return: float | None = manifest.get("best_return")
        """Mean return of the best evaluation so far; kept up to date on rank 0 only."""
        best = manifest.get("best_step")
        self._best_step: int = -1 if best is None else best
        self._candidates: dict[int, _Snapshot] = {}
        self.more_arrays: Callable[[], dict[str, np.ndarray]] = dict
        """Arrays [A, …] by name that are part of a checkpoint beside what is kept."""
        self.more_facts: Callable[[], dict[str, Any]] = dict
        """On rank 0: what the manifest says beside what is said here."""
        self.is_evaluating: Callable[[], bool] = lambda: False
        """On rank 0: whether an evaluation is going on beside learning, of which no checkpoint can tell."""
        self.finish_evaluation: Callable[[], None] = lambda: None
        """On rank 0: brings it to its end."""
        self._due = 0  # the next boundary that all ranks meet at
        self._met = time.monotonic(), self.start
        self._pace = math.inf  # seconds per step
        self._written = time.monotonic(), self.start if resumed else -1

    def keep(self, name: str, rows: Tensor) -> None:
        """Makes `rows` [A, …] part of every checkpoint, and sets them to what they were in the one resumed from.

        Args:
            name: by which they are found again.
            rows: of this rank's agents; changed in place as long as the run goes on.
        """
        self._kept[name] = rows
        if self._restored:
            rows.copy_(torch.from_numpy(self._restored[name]))

    def keep_optimiser(self, optimiser: Adam, whose: str = "ppo") -> None:
        """`keep` for all that an optimiser is; `whose` begins the names."""
        for name in ("first_moment", "second_moment", "steps"):
            self.keep(f"{whose}/{name}", getattr(optimiser, name))

    def restored(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays [A, …] of the checkpoint resumed from whose names begin with `prefix`, by the rest of the name."""
        return {k.removeprefix(prefix): v for k, v in self._restored.items() if k.startswith(prefix)}

    def boundary(self, step: int, always: bool = False) -> None:
        """A point where all that a run is can be written down: between two units, or in the middle of a collection.

        All ranks meet here about every `checkpoint.boundary_seconds`, write a checkpoint if it is time, and stop if any
        of them has been asked to. Rank 0 decides how many steps lie before the next meeting; what is learned does not
        depend on it.

        Args:
            step: training steps per agent so far.
            always: meet here in any case; all ranks say so alike.

        Raises:
            Unfinished: on all ranks alike.
        """
        if step < self._due and not always:
            return
        faults.point("boundary")
        if reason := self._meet(step, self._stop.reason):
            raise Unfinished(REASONS[reason - 1])

    def finish(self, step: int) -> None:
        """The last boundary of a run, with a checkpoint."""
        self._meet(step, write=True)

    def in_step(self, work: Generator[None, None, T] | None) -> tuple[T | None, bool]:
        """Does work whose middle cannot be written down, while all ranks meet as often as at boundaries.

        Args:
            work: of this rank, a bit at a time; None if it has none.

        Returns:
            What `work` has come to, None without; and whether all ranks have given up because one of them has been
            asked to stop. What `work` has changed by then is to be undone, and a `boundary` stops the run.
        """
        result, bits, begin = None, 1, time.monotonic()
        while True:
            try:
                for _ in range(bits if work else 0):
                    next(work)
            except StopIteration as end:
                result, work = end.value, None
            faults.point("bit of work")
            self._exchange.barrier()
            pace = (time.monotonic() - begin) / bits
            begin = time.monotonic()
            wish = np.array([self._stop.reason, work is not None, 1], np.int64)
            if self._rank == 0 and pace:
                wish[2] = max(1, min(int(self._configuration.checkpoint.boundary_seconds / pace), 10**9))
            stop, busy, bits = self._exchange.greatest(wish).tolist()
            if stop or not busy:
                return result, bool(stop and busy)

    def evaluated(self, step: int, mean_return: float | None) -> bool:
        """The state now may be the best so far, of which a checkpoint is kept beside the newest.

        Only rank 0 knows, and others need not wait to hear of it: they remember what they are until the next boundary.

        Args:
            step: training steps per agent so far.
            mean_return: of the policies as they are, on rank 0; None elsewhere.

        Returns:
            Whether it is the best, on rank 0.
        """
        best = mean_return is not None and (self.best_return is None or mean_return > self.best_return)
        if best:
            self.best_return, self._best_step = mean_return, step
        if (best or self._rank) and step > self._written[1]:  # else it is on the disk already
            self._candidates[step] = self._snapshot(step)
        return best

    def _meet(self, step: int, stop: int = 0, write: bool = False) -> int:
        """All ranks agree on what is to be done and do it.

        Args:
            stop: this rank's `StopFlag.reason`.
            write: whether to write a checkpoint in any case.

        Returns:
            Why to stop, as of `StopFlag.reason`; 0 to go on.
        """
        self.reached = step
        self._exchange.barrier()  # rank 0 is here long before the others: what it measures begins when all are
        wish = np.array([stop, write, 0, -1, False], np.int64)
        if self._rank == 0:
            wish[1] |= self._is_due(step)
            wish[2] = self._next_meeting(step, writes=bool(wish[1]))
            wish[3] = self._best_step
            wish[4] = self.is_evaluating()
        stop, write, self._due, best, evaluating = self._exchange.greatest(wish).tolist()
        if evaluating:
            if not (stop or write):
                return 0  # any candidate may come to be the best
            self.finish_evaluation()
            return self._meet(step, stop, bool(write))
        self._candidates = {best: self._candidates[best]} if best in self._candidates else {}
        if stop or write:
            if best < step:
                for snapshot in self._candidates.values():
                    self._write(snapshot, best)
            if step > self._written[1]:  # in the middle of a collection it is what it was at the last boundary
                self._write(self._snapshot(step), best)
            self._candidates = {}
            self._written = time.monotonic(), step
        return stop

    def _is_due(self, step: int) -> bool:
        settings = self._configuration.checkpoint
        then, before = self._written
        since = step - max(before, 0)
        return time.monotonic() - then >= 60 * settings.minutes or since >= (settings.steps or math.inf)

    def _next_meeting(self, step: int, writes: bool) -> int:
        """Training steps done then, about `boundary_seconds` from now if the pace stays what it is.

        Args:
            writes: whether a checkpoint is written now.
        """
        settings = self._configuration.checkpoint
        now = time.monotonic()
        then, before = self._met
        if step > before:
            self._pace = (now - then) / (step - before)
            self._met = now, step
        distance = max(1, min(int(settings.boundary_seconds / self._pace) if self._pace else 1, 10**12))
        if settings.steps:
            since = 0 if writes else step - max(self._written[1], 0)
            distance = min(distance, max(1, settings.steps - since))
        return step + distance

    def _snapshot(self, step: int) -> _Snapshot:
        arrays = {name: rows.cpu().numpy().copy() for name, rows in self._kept.items()} | self.more_arrays()
        facts = {"best_return": self.best_return, **self.more_facts()} if self._rank == 0 else {}
        return _Snapshot(step, arrays, facts)

    def _write(self, snapshot: _Snapshot, best: int) -> None:
        """All ranks write their part; see `runs.checkpoint`."""
        c = self._configuration
        step = snapshot.step
        with self._clock("write"):
            if self._rank == 0:
                begin(self._folder, step)
        self._exchange.barrier()
        facts = np.zeros(5, np.uint64)
        with self._clock("write"):
            if self._layout.agents(self._rank):
                size, digest = write_shard(partial_folder(self._folder, step), self._rank, snapshot.arrays)
                facts[0], facts[1:] = size, np.frombuffer(digest, np.uint64)
        facts = self._exchange.gather_report(facts)
        if self._rank:
            return
        with self._clock("write"):
            files = {
                shard_name(rank): {
                    "agents": list(self._layout.agents(rank)),
                    "size": int(row[0]),
                    "sha256": row[1:].tobytes().hex(),
                }
                for rank, row in enumerate(facts)
                if self._layout.counts()[rank]
            }
            manifest = {
                "step": step,
                "best_step": best if best >= 0 else None,
                "configuration": c.model_dump(mode="json"),
                "layout": str(self._layout),
                "versions": versions(),
                **snapshot.facts,
                "files": files,
            }
            publish(self._folder, step, manifest, c.checkpoint.keep)
