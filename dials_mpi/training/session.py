"""What every algorithm works with on one rank: who am I, what travels how, and how a run is measured."""

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dials_mpi.analysis.reading import open_run
from dials_mpi.analysis.results import share_above
from dials_mpi.config import Configuration
from dials_mpi.learning.episodes import JointEpisodes, batches_of
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import STATISTICS
from dials_mpi.learning.statistics import Means
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.shared_rows import SharedRows
from dials_mpi.runs.clock import Clock, summarise
from dials_mpi.runs.directory import RunDirectory
from dials_mpi.runs.metrics import Metrics
from dials_mpi.runs.policies import save_policies
from dials_mpi.runs.progress import Progress
from dials_mpi.runs.stopping import StopFlag
from dials_mpi.runs.tensorboard import TensorBoard
from dials_mpi.simulators.interface import Domain
from dials_mpi.training.checkpointing import Checkpointing, Resumed
from dials_mpi.training.evaluation import Returns, play_controller
from dials_mpi.training.plan import Segment, plan, updates_per_unit

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
        self.reference: np.ndarray | None = None
        """`Run.best_reference`; from `Session.begin` on."""

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
        device: where this rank's agents learn, as torch names it.
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
        self.influence_folder = folder / "influence"
        self.resumed = resumed
        self.layout = layout
        self.device = device
        """Where this rank's agents learn. `joint_policy` acts on the CPU."""
        self._plan = plan(configuration, domain.horizon)
        self.exchange = Exchange(comm, layout, clock)
        self._evaluation: Generator[None, None, None] | None = None
        """On rank 0: what is left of an evaluation beside learning."""
        if record:
            self.exchange.on_progress = self.tick
            self.exchange.spare_work = self._evaluate_one_step
        self.agents = layout.agents(comm.rank)
        """Ids of the agents that this rank owns."""
        self.policy = self._policy_of(self.agents, configuration.seed, device=device)
        """Policies of this rank's agents."""
        self._rank = comm.rank
        self.exchange.barrier()
        self._joint_rows = SharedRows(comm, layout.collectors, (layout.n_agents, self.policy.parameters.shape[1]))
        self.joint_policy: Policy | None = None
        """Policies of all agents as of the last `gather_policies`; on collectors only."""
        if self._joint_rows.rows is not None:
            parameters = torch.from_numpy(self._joint_rows.rows)
            self.joint_policy = self._policy_of(range(layout.n_agents), None, parameters=parameters)
        self.statistics = Means()
        """Learning statistics of this rank's agents in the current segment."""
        self._earlier_seconds = 0.0
        self._evaluated = -1  # PPO updates before the last evaluation
        if resumed:
            self._evaluated = resumed.manifest.get("evaluated", resumed.manifest["updates"])
            self._earlier_seconds = resumed.manifest["seconds"]
        self.checkpoints = Checkpointing(configuration, layout, comm.rank, self.exchange, clock, folder, stop, resumed)
        self.checkpoints.more_arrays = self._statistics_rows
        self.checkpoints.more_facts = self._facts
        self.checkpoints.is_evaluating = lambda: self._evaluation is not None
        self.checkpoints.finish_evaluation = self.finish_evaluation
        self.checkpoints.keep("policy", self.policy.parameters)

    def begin(self) -> None:
        """References and the policies as they are before training; nothing of it if the run is resumed."""
        if not self.resumed:
            self.evaluate_references()
        if self.record:
            self.record.reference = open_run(self.record.directory.path).best_reference
        self.gather_policies()
        segments, start = self._plan, self.checkpoints.start
        collects = any(s.collection_evaluates and s.updates.start == start for s in segments)
        if self._evaluated < start and start in (0, segments[-1].updates.stop) and not collects:
            self.evaluate(start)

    def segments(self) -> Iterator[Segment]:
        """The main loop of every algorithm; what lies before the checkpoint of a resumed run is left out."""
        for segment in self._plan:
            if segment.updates.stop <= self.checkpoints.start:
                continue
            done = max(0, self.checkpoints.start - segment.updates.start)
            self.statistics = Means.from_rows(self.checkpoints.restored(_STATISTICS) if done else {})
            yield replace(segment, updates=segment.updates[done:], round=None if done else segment.round)

    def units(self, segment: Segment) -> Iterator[tuple[int, range]]:
        """Number and updates of each unit of a segment; between two of them the run may stop."""
        self.clock.stage = "learn"
        size = updates_per_unit(self.configuration, self.domain.horizon)
        for start in range(segment.updates.start, segment.updates.stop, size):
            yield start // size, range(start, min(start + size, segment.updates.stop))
            if start + size < segment.updates.stop:
                self.checkpoints.boundary(start + size)

    def gather_policies(self) -> None:
        """Owners → collectors: `joint_policy` becomes the policies as they are now."""
        self.finish_evaluation()  # of those that it has been
        joint = self._joint_rows
        self.exchange.gather_rows(self.policy.parameters.cpu().numpy(), joint.rows, joint.hosts)
        with self.clock("gather"):
            joint.publish()

    def gather(self, rows: np.ndarray) -> np.ndarray | None:
        """Small per-agent figures [A, …] → [N, …] on rank 0, None elsewhere."""
        into = np.empty((self.domain.n_agents, *rows.shape[1:]), rows.dtype) if self.record else None
        self.exchange.gather_rows(rows, into)
        return into

    def evaluate_references(self) -> None:
        """Hand-coded controllers on the GS, once, before training; the collectors share the work."""
        evaluation, seed = self.configuration.evaluation, self.configuration.seed
        batches = batches_of(evaluation.handcoded_episodes, evaluation.copies)
        for controller in self.domain.controllers if batches else ():

            def play(_, members, controller=controller):
                return play_controller(self.domain, controller, members, seed)

            result = Returns(self._shared(batches, play))
            if not self.record:
                continue
            self._write(0, "reference", controller=controller, **result.as_record())
            self.record.progress.say(f"hand-coded reference, {controller}: return {result}")

    def joint_episodes(self, updates: int) -> contextlib.AbstractContextManager[JointEpisodes | None]:
        """`joint_policy` at play, with the streams of the training step after so many updates; None without one."""
        c = self.configuration
        if not self.joint_policy:
            return contextlib.nullcontext()
        return JointEpisodes(self.domain, self.joint_policy, c.seed, c.steps_after(updates))

    def turns(self, batches: list[range]) -> Iterator[tuple[dict[int, range], tuple[int, range] | None]]:
        """How the collectors share batches of episodes, one each at a turn.

        Yields:
            The episodes that every collector plays, by rank; and number and episodes of this rank's batch, if it has
            one.
        """
        for turn in self.layout.turns(len(batches)):
            number = turn.get(self._rank)
            members = {rank: batches[batch] for rank, batch in turn.items()}
            yield members, None if number is None else (number, batches[number])

    def empty_returns(self, episodes: int) -> np.ndarray:
        """[N, episodes] float32 to be filled in on rank 0, [0, episodes] elsewhere."""
        return np.empty((self.domain.n_agents if self.record else 0, episodes), np.float32)

    def evaluate(self, updates: int, together: bool = False) -> None:
        """The policies of the last `gather_policies` on the GS.

        Args:
            updates: done so far.
            together: the collectors share the work and all ranks wait for them; else rank 0 does it, and the owners go
                on meanwhile: a rank 0 that owns no agents has until the next `gather_policies`.
        """
        evaluation = self.configuration.evaluation
        batches = batches_of(evaluation.episodes, evaluation.copies)
        if together:
            with self.joint_episodes(updates) as episodes:
                self._record_evaluation(updates, self._shared(batches, lambda *mine: episodes.play(*mine)))
        elif self.record:
            self._evaluation = self._evaluate_alone(updates, batches)
            if self.agents:
                self.finish_evaluation()
        else:
            self._record_evaluation(updates, self.empty_returns(0))

    def finish_evaluation(self) -> None:
        """Rank 0 does what is left of an evaluation, if it has any; elsewhere nothing."""
        while self._evaluate_one_step():
            self.exchange.receive_progress()

    def _evaluate_one_step(self) -> bool:
        """A joint step of the evaluation that is going on; whether there is one."""
        if self._evaluation is None:
            return False
        with self.clock("evaluate"):
            try:
                next(self._evaluation)
            except StopIteration:
                self._evaluation = None
        return True

    def _evaluate_alone(self, updates: int, batches: list[range]) -> Generator[None, None, None]:
        """Yields after each joint step; whoever lets it go on books the time."""
        returns = self.empty_returns(batches[-1].stop)
        with self.joint_episodes(updates) as episodes:
            for number, members in enumerate(batches):
                returns[:, members] = yield from episodes.play_by_steps(number, members)
        self._record_evaluation(updates, returns)

    def _shared(self, batches: list[range], play: Callable[[int, range], np.ndarray]) -> np.ndarray:
        """Returns of batches of episodes that the collectors share; as `empty_returns`, filled in.

        Args:
            play: called with number and episodes of a batch; its returns [N, B] float32.
        """
        self.clock.stage = "evaluate"
        returns = self.empty_returns(batches[-1].stop)
        for members, mine in self.turns(batches):
            with self.clock("evaluate"):
                part = play(*mine) if mine else None
            self.exchange.deal_columns([(part, returns)], members, to_owners=False)
        return returns

    def evaluated_by_collection(self, segment: Segment, returns: np.ndarray) -> None:
        """Records what the episodes collected at the beginning of a segment returned, if an evaluation is due there."""
        if segment.collection_evaluates and self._evaluated < segment.updates.start:
            self._record_evaluation(segment.updates.start, returns)

    def _record_evaluation(self, updates: int, returns: np.ndarray) -> None:
        """Writes figures and policies; `returns` [N, E] on rank 0."""
        self._evaluated = updates
        if not self.record:
            self.checkpoints.evaluated(updates, None)
            return
        step = self.configuration.steps_after(updates)
        result = Returns(returns)
        record = result.as_record()
        if self.record.reference is not None:
            record["share_above_reference"] = share_above(record["per_agent"]["mean_return"], self.record.reference)
        self._write(step, "evaluate", **record)
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
            rows[:, column] = statistics[name].cpu()
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
            # A rank 0 that only coordinates has the time, unless nobody has anything else to do any more.
            is_last = segment.updates.stop == self._plan[-1].updates.stop
            self.evaluate(segment.updates.stop, together=self.layout.coordinator_works or is_last)
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

    def close(self, cores: int, stopped_by: str | None = None) -> dict | None:
        """Collects every rank's clock; returns the closing summary on rank 0.

        Args:
            cores: that the ranks together can keep busy.
            stopped_by: one of `runs.stopping.REASONS` if the run has not come to its end.
        """
        self.clock.stage = "end"
        if not stopped_by:
            self.checkpoints.finish(self._plan[-1].updates.stop)
        reports = self.exchange.gather_report(self.clock.report())
        self.exchange.close()
        self.joint_policy = None
        self._joint_rows.close()
        if reports is None:
            return None
        steps = self.configuration.steps_after(self.checkpoints.reached - self.checkpoints.start)
        summary = summarise(reports, steps * self.domain.n_agents, cores)
        self.record.close()
        if self.domain.scratch:
            shutil.rmtree(self.domain.scratch, ignore_errors=True)  # all others have handed in their reports by now
        self.record.directory.finish(summary, stopped_by)
        return summary

    def _policy_of(self, agents, seed: int | None, **where) -> Policy:
        c, domain = self.configuration, self.domain
        return Policy(agents, domain.observation_size, domain.n_actions, c.policy, seed, **where)

    def _statistics_rows(self) -> dict[str, np.ndarray]:
        return {f"{_STATISTICS}{name}": row.copy() for name, row in self.statistics.rows().items()}

    def _facts(self) -> dict[str, Any]:
        """What rank 0 has to know when the run is resumed."""
        return {
            "seconds": self._earlier_seconds + self.clock.elapsed,
            "evaluated": self._evaluated,
            "metrics": self.record.metrics.written(),
        }

    def _write(self, step: int, phase: str, **values) -> None:
        with self.clock("write"):
            self.record.write(step, phase, self._earlier_seconds + self.clock.elapsed, **values)


def _plain_list(column: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in column]
