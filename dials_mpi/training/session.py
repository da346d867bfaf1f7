"""What every method works with on one rank: the run's means, and its schedule."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dials_mpi.config import Configuration
from dials_mpi.learning.statistics import Means
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.means import ExactMeans
from dials_mpi.parallel.neighbours import Neighbours
from dials_mpi.runs.clock import Clock, summarise
from dials_mpi.runs.stopping import StopFlag
from dials_mpi.simulators.interface import Domain
from dials_mpi.training.checkpointing import Checkpointing, Resumed
from dials_mpi.training.evaluator import Evaluator
from dials_mpi.training.plan import Segment, plan, unit_steps, update_steps
from dials_mpi.training.published import Published
from dials_mpi.training.record import Record, plain_list

_STATISTICS = "statistics/"


class Session:
    """One rank's view of a run.

    Args:
        comm: all ranks of the run; rank 0 coordinates.
        configuration, domain, layout: the same on every rank.
        clock: books this rank's time.
        record: on rank 0, None elsewhere.
        folder: the run directory.
        stop: asked at boundaries whether to go on.
        resumed: the checkpoint to go on from, if there is one.
        device: where this rank's agents learn, as torch names it; what is published acts on the CPU.
    """

    def __init__(
        self,
        comm,
        configuration: Configuration,
        domain: Domain,
        layout: Layout,
        clock: Clock,
        record: Record | None,
        folder: Path,
        stop: StopFlag,
        resumed: Resumed | None = None,
        device: str = "cpu",
    ):
        self.configuration = configuration
        self.domain = domain
        self.clock = clock
        self.record = record
        self.folder = folder
        self.layout = layout
        self.device = device
        self.agents = layout.agents(comm.rank)
        """Ids of the agents that this rank owns."""
        self.statistics = Means()
        """Learning statistics of this rank's agents in the current segment."""
        self._plan = plan(configuration, domain.horizon)
        self._resumed = resumed
        self.exchange = Exchange(comm, layout, clock)
        if record:
            self.exchange.on_progress = self.tick
        self._comm = comm
        self._neighbours: list[Neighbours] = []
        self._means = ExactMeans(comm, layout, clock) if configuration.shares_policy else None
        self.mean = self._means.over_agents if self._means else None
        """What learners of a shared policy are given, see `PPO`; None if every agent has its own."""
        self.published = Published(comm, self.exchange, layout, clock)
        self.checkpoints = Checkpointing(configuration, layout, comm.rank, self.exchange, clock, folder, stop, resumed)
        self.checkpoints.more_arrays = self._statistics_rows
        self.checkpoints.more_facts = self._facts
        self.evaluator = Evaluator(
            configuration,
            domain,
            layout,
            comm.rank,
            self.exchange,
            clock,
            record,
            self.published,
            self.checkpoints,
            resumed.manifest.get("evaluated", resumed.manifest["step"]) if resumed else -1,
        )

    def publish(self, name: str, rows: Tensor, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Rows of this rank's agents are seen by collectors as of `gather`, and are part of every checkpoint.

        Args:
            name, rows, shapes: as of `Published.add`.
        """
        self.published.add(name, rows, shapes)
        self.checkpoints.keep(name, rows)

    def neighbours(self, radius: int | None) -> Neighbours:
        """The halo of a radius in the domain's graph. All ranks make it together; owners use it as they like."""
        graph = self.domain.graph if radius else None
        self._neighbours.append(Neighbours(graph, radius, self._comm, self.layout, self.clock))
        return self._neighbours[-1]

    def begin(self) -> None:
        """References and the policies as they are before training; nothing of it if the run is resumed."""
        if not self._resumed:
            self.evaluator.references()
        self.evaluator.load_reference()
        self.gather()
        segments, start = self._plan, self.checkpoints.start
        collects = any(s.collection_evaluates and s.start == start for s in segments)
        if self.evaluator.evaluated < start and start in (0, segments[-1].stop) and not collects:
            self.evaluator.evaluate(start)

    def segments(self) -> Iterator[Segment]:
        """The main loop of every method; what lies before the checkpoint of a resumed run is left out."""
        for segment in self._plan:
            if segment.stop <= self.checkpoints.start:
                continue
            done = self.checkpoints.start > segment.start
            self.statistics = Means.from_rows(self.checkpoints.restored(_STATISTICS) if done else {})
            yield replace(segment, start=self.checkpoints.start, round=None) if done else segment

    def units(self, segment: Segment) -> Iterator[tuple[int, range]]:
        """Number of each unit of a segment, and the training steps before each of its updates.

        Between two units the run may stop.
        """
        self.clock.stage = "learn"
        c, horizon = self.configuration, self.domain.horizon
        size, step = unit_steps(c, horizon), update_steps(c, horizon)
        for start in range(segment.start, segment.stop, size):
            yield start // size, range(start, start + size, step)
            if start + size < segment.stop:
                self.checkpoints.boundary(start + size)

    def gather(self) -> None:
        """Owners → collectors: what is published, as it is now."""
        self.evaluator.finish()  # of what has been published so far
        self.published.gather()

    def gather_figures(self, rows: np.ndarray) -> np.ndarray | None:
        """Small per-agent figures [A, …] → [N, …] on rank 0, None elsewhere."""
        into = np.empty((self.domain.n_agents, *rows.shape[1:]), rows.dtype) if self.record else None
        self.exchange.gather_rows(rows, into)
        return into

    def end_segment(self, segment: Segment) -> None:
        """Owners hand in what they publish and their learning statistics; rank 0 logs, evaluates if it is time."""
        statistics, names = self.statistics.result(), self.configuration.method.statistics
        self.gather()
        rows = np.zeros((len(self.agents), len(names)), np.float32)
        for column, name in enumerate(names if statistics else ()):
            rows[:, column] = statistics[name].cpu()
        if not np.isfinite(rows).all():
            broken = self.agents[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise FloatingPointError(f"learning of agent {broken} gave values that are not finite: {rows.tolist()}")
        rows = self.gather_figures(rows)
        if self.record:
            columns = dict(zip(names, rows.T, strict=True))
            self.record.write(
                segment.stop,
                "learn",
                **{name: column.mean() for name, column in columns.items()},
                per_agent={name: plain_list(column) for name, column in columns.items()},
            )
        self.statistics = Means()
        if segment.evaluates:
            # A rank 0 that only coordinates has the time, unless nobody has anything else to do any more.
            is_last = segment.stop == self._plan[-1].stop
            self.evaluator.evaluate(segment.stop, together=self.layout.coordinator_works or is_last)
        self.checkpoints.boundary(segment.stop)

    def tick(self, step: int) -> None:
        """Shows progress inside a segment."""
        if self.record:
            self.record.progress.reached(step)
        else:
            self.exchange.post_progress(step)

    def close(self, cores: int, stopped_by: str | None = None) -> dict | None:
        """Collects every rank's clock; returns the closing summary on rank 0.

        Args:
            cores: that the ranks together can keep busy.
            stopped_by: one of `runs.stopping.REASONS` if the run has not come to its end.
        """
        self.clock.stage = "end"
        if not stopped_by:
            self.checkpoints.finish(self._plan[-1].stop)
        reports = self.exchange.gather_report(self.clock.report())
        self.exchange.close()
        self.published.close()
        for made in (*self._neighbours, *([self._means] if self._means else [])):
            made.close()
        if reports is None:
            return None
        steps = self.checkpoints.reached - self.checkpoints.start
        summary = summarise(reports, steps * self.domain.n_agents, cores)
        self.record.close()
        if self.domain.scratch:
            shutil.rmtree(self.domain.scratch, ignore_errors=True)  # all others have handed in their reports by now
        self.record.directory.finish(summary, stopped_by)
        return summary

    def _statistics_rows(self) -> dict[str, np.ndarray]:
        return {f"{_STATISTICS}{name}": row.copy() for name, row in self.statistics.rows().items()}

    def _facts(self) -> dict[str, Any]:
        """What rank 0 has to know when the run is resumed."""
        return {"evaluated": self.evaluator.evaluated, **self.record.facts()}
