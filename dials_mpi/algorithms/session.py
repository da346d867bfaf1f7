"""What every algorithm works with on one rank: who am I, what travels how, and how a run is measured."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.algorithms.checkpointing import Checkpointing, Resumed
from dials_mpi.algorithms.evaluation import evaluate_controller, evaluate_policy
from dials_mpi.algorithms.plan import Segment, plan, updates_per_unit
from dials_mpi.config import Configuration
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import STATISTICS
from dials_mpi.learning.statistics import Means
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.runs.clock import Clock, summarise
from dials_mpi.runs.directory import RunDirectory
from dials_mpi.runs.metrics import Metrics
from dials_mpi.runs.policies import save_policies
from dials_mpi.runs.progress import Progress
from dials_mpi.runs.reading import open_run
from dials_mpi.runs.stopping import StopFlag
from dials_mpi.runs.tensorboard import TensorBoard
from dials_mpi.simulators.interface import Domain

_STATISTICS = "statistics/"


class Record:
    """What rank 0 alone keeps: the run's files and the progress shown."""

    def __init__(self, directory: RunDirectory, configuration: Configuration, domain: Domain, done: int = 0):
        total = configuration.steps_after(plan(configuration, domain.horizon)[-1].updates.stop)
        self.directory = directory
        self.metrics = Metrics(directory.path)
        self._tensorboard = None
        if configuration.log.tensorboard:
            past = open_run(directory.path).records
            self._tensorboard = TensorBoard(directory.path / "tensorboard", past[-1]["seconds"] if past else 0.0, past)
        self.progress = Progress(total, configuration.agents, configuration.steps_after(done))
        self.reference: float | None = None
        """Mean return of the best hand-coded controller."""

    def write(self, step: int, phase: str, seconds: float, **values: Any) -> None:
        """One record; see `Metrics.write`."""
        self.metrics.write(step, phase, seconds, **values)
        if self._tensorboard:
            self._tensorboard.write(step, phase, seconds, **values)

    def close(self) -> None:
        self.metrics.close()
        self.progress.close()
        if self._tensorboard:
            self._tensorboard.close()


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
    ):
        self.configuration = configuration
        self.domain = domain
        self.clock = clock
        self.record = record
        self.influence_folder = folder / "influence"
        self.resumed = resumed
        self.exchange = Exchange(comm, layout, clock)
        if record:
            self.exchange.on_progress = self.tick
        self.agents = layout.agents(comm.rank)
        """Ids of the agents that this rank owns."""
        self.policy = self._policy_of(self.agents)
        """Policies of this rank's agents."""
        self.joint_policy = self._policy_of(range(layout.n_agents)) if record else None
        """Policies of all agents as of the last `gather_policies`; on rank 0 only."""
        self.statistics = Means()
        """Learning statistics of this rank's agents in the current segment."""
        self._earlier_seconds = 0.0
        if resumed:
            self._earlier_seconds = resumed.manifest["seconds"]
            if record:
                record.reference = resumed.manifest["reference"]
        self.checkpoints = Checkpointing(configuration, layout, comm.rank, self.exchange, clock, folder, stop, resumed)
        self.checkpoints.more_arrays = self._statistics_rows
        self.checkpoints.more_facts = self._facts
        self.checkpoints.keep("policy", self.policy.parameters)

    def begin(self) -> None:
        """References and the policies as they are before training; nothing of it if the run is resumed."""
        if not self.resumed:
            self.evaluate_references()
        self.gather_policies()
        if not self.resumed:
            self.evaluate(0)

    def segments(self) -> Iterator[Segment]:
        """The main loop of every algorithm; what lies before the checkpoint of a resumed run is left out."""
        for segment in plan(self.configuration, self.domain.horizon):
            if segment.updates.stop <= self.checkpoints.start:
                continue
            done = max(0, self.checkpoints.start - segment.updates.start)
            self.statistics = Means.from_rows(self.checkpoints.restored(_STATISTICS) if done else {})
            yield replace(segment, updates=segment.updates[done:], round=None if done else segment.round)

    def units(self, segment: Segment) -> Iterator[tuple[int, range]]:
        """Number and updates of each unit of a segment; between two of them the run may stop."""
        size = updates_per_unit(self.configuration, self.domain.horizon)
        for start in range(segment.updates.start, segment.updates.stop, size):
            yield start // size, range(start, min(start + size, segment.updates.stop))
            if start + size < segment.updates.stop:
                self.checkpoints.boundary(start + size)

    def gather_policies(self) -> None:
        """Owners → rank 0: `joint_policy` becomes the policies as they are now."""
        into = self.joint_policy.parameters.numpy() if self.joint_policy else None
        self.exchange.gather_rows(self.policy.parameters.numpy(), into)

    def gather(self, rows: np.ndarray) -> np.ndarray | None:
        """Small per-agent figures [A, …] → [N, …] on rank 0, None elsewhere."""
        into = np.empty((self.domain.n_agents, *rows.shape[1:]), rows.dtype) if self.record else None
        self.exchange.gather_rows(rows, into)
        return into

    def evaluate_references(self) -> None:
        """Hand-coded controllers on the GS, once, before training."""
        episodes = self.configuration.evaluation.handcoded_episodes
        if not self.record or not episodes:
            return
        for controller in self.domain.controllers:
            with self.clock("evaluate"):
                result = evaluate_controller(self.domain, controller, episodes, self.configuration.seed)
            self._write(0, "reference", controller=controller, **result.as_record())
            self.record.progress.say(f"hand-coded reference, {controller}: return {result}")
            best = self.record.reference
            self.record.reference = result.mean_return if best is None else max(best, result.mean_return)

    def evaluate(self, updates: int) -> None:
        """`joint_policy` on the GS, on rank 0; the owners go on meanwhile."""
        if not self.record:
            self.checkpoints.evaluated(updates, None)
            return
        c = self.configuration
        step = c.steps_after(updates)
        with self.clock("evaluate"):
            result = evaluate_policy(self.domain, self.joint_policy, c.evaluation.episodes, c.seed, step)
        extra = {}
        if self.record.reference is not None:
            extra["share_above_reference"] = float((result.per_agent > self.record.reference).mean())
        self._write(step, "evaluate", **result.as_record(), **extra)
        with self.clock("write"):
            names = ["policies.npz"]
            if self.checkpoints.evaluated(updates, result.mean_return):
                names.append("policies_best.npz")
            for name in names:
                save_policies(self.record.directory.path / name, self.joint_policy.network, step)
        self.record.progress.reached(step, f"return {result}")

    def end_segment(self, segment: Segment) -> None:
        """Owners hand in policies and learning statistics; rank 0 logs, evaluates if it is time."""
        statistics = self.statistics.result()
        self.gather_policies()
        rows = np.zeros((len(self.agents), len(STATISTICS)), np.float32)
        for column, name in enumerate(STATISTICS if statistics else ()):
            rows[:, column] = statistics[name]
        if not np.isfinite(rows).all():
            broken = self.agents[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise FloatingPointError(f"learning of agent {broken} gave values that are not finite: {rows.tolist()}")
        rows = self.gather(rows)
        if self.record:
            columns = dict(zip(STATISTICS, rows.T, strict=True))
            self._write(
                self.configuration.steps_after(segment.updates.stop),
                "learn",
                **{name: column.mean() for name, column in columns.items()},
                per_agent={name: _plain_list(column) for name, column in columns.items()},
            )
        self.statistics = Means()
        if segment.evaluates:
            self.evaluate(segment.updates.stop)
        self.checkpoints.boundary(segment.updates.stop)

    def log_predictors(self, round_: int, updates: int, cross_entropies: np.ndarray) -> None:
        """Writes what AIP training came to; `cross_entropies` [A, 2] float32, held out, before and after."""
        gathered = self.gather(cross_entropies)
        if self.record:
            before, after = gathered.T
            step = self.configuration.steps_after(updates)
            self._write(
                step,
                "aip",
                round=round_,
                cross_entropy_before=before.mean(),
                cross_entropy_after=after.mean(),
                per_agent={"cross_entropy_before": _plain_list(before), "cross_entropy_after": _plain_list(after)},
            )
            self.record.progress.say(
                f"AIP training {round_} at step {step:,}: held-out cross-entropy "
                f"{before.mean():.3f} → {after.mean():.3f} nats"
            )

    def tick(self, updates: int) -> None:
        """Shows progress inside a segment."""
        if self.record:
            self.record.progress.reached(self.configuration.steps_after(updates))
        else:
            self.exchange.post_progress(updates)

    def close(self, cores: int, state: str = "finished") -> dict | None:
        """Collects every rank's clock; returns the closing summary on rank 0.

        Args:
            state: what `run.json` says of the run.
        """
        if state == "finished":
            self.checkpoints.finish(plan(self.configuration, self.domain.horizon)[-1].updates.stop)
        reports = self.exchange.gather_report(self.clock.report())
        self.exchange.close()
        if reports is None:
            return None
        steps = self.configuration.steps_after(self.checkpoints.reached - self.checkpoints.start)
        summary = summarise(reports, steps * self.domain.n_agents, cores)
        self.record.close()
        if self.domain.scratch:
            shutil.rmtree(self.domain.scratch, ignore_errors=True)  # all others have handed in their reports by now
        self.record.directory.finish(summary, state)
        return summary

    def _policy_of(self, agents) -> Policy:
        c, domain = self.configuration, self.domain
        return Policy(agents, domain.observation_size, domain.n_actions, c.policy, c.seed)

    def _statistics_rows(self) -> dict[str, np.ndarray]:
        return {f"{_STATISTICS}{name}": row.copy() for name, row in self.statistics.rows().items()}

    def _facts(self) -> dict[str, Any]:
        """What rank 0 has to know when the run is resumed."""
        return {
            "seconds": self._earlier_seconds + self.clock.elapsed,
            "reference": self.record.reference,
            "metrics": self.record.metrics.written(),
        }

    def _write(self, step: int, phase: str, **values) -> None:
        with self.clock("write"):
            self.record.write(step, phase, self._earlier_seconds + self.clock.elapsed, **values)


def _plain_list(column: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in column]
