"""Evaluations of a run that is going on: who plays them, when, and what is kept of them."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from dials_mpi.analysis.reading import open_run
from dials_mpi.analysis.results import share_above
from dials_mpi.config import Configuration
from dials_mpi.learning.episodes import JointEpisodes, Outcomes, batches_of
from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.runs.policies import save_policies
from dials_mpi.simulators.interface import Domain
from dials_mpi.training.checkpointing import Checkpointing
from dials_mpi.training.evaluation import Returns, play_controller
from dials_mpi.training.plan import Segment
from dials_mpi.training.published import Published
from dials_mpi.training.record import Record


class Evaluator:
    """One rank's part in the evaluations of a run.

    Args:
        configuration, domain, layout: the same on every rank.
        rank: this one.
        exchange: joins all ranks; while rank 0 waits in it, it plays a joint step at a time.
        clock: books the phase `evaluate`.
        record: on rank 0, None elsewhere.
        published: whose rows are evaluated.
        checkpoints: told of every evaluation.
        evaluated: training steps before the last evaluation; -1: there was none.
    """

    def __init__(
        self,
        configuration: Configuration,
        domain: Domain,
        layout: Layout,
        rank: int,
        exchange: Exchange,
        clock,
        record: Record | None,
        published: Published,
        checkpoints: Checkpointing,
        evaluated: int,
    ):
        self._configuration = configuration
        self._domain = domain
        self._layout = layout
        self._rank = rank
        self._exchange = exchange
        self._clock = clock
        self._record = record
        self._published = published
        self._checkpoints = checkpoints
        self.evaluated = evaluated
        """Training steps before the last evaluation; -1 before the first."""
        self._going_on: Generator[None, None, None] | None = None
        """On rank 0: what is left of an evaluation beside learning."""
        if record:
            exchange.spare_work = self._one_step
        checkpoints.is_evaluating = lambda: self._going_on is not None
        checkpoints.finish_evaluation = self.finish

    def joint_episodes(self, step: int, purpose: str = "evaluate") -> AbstractContextManager[JointEpisodes | None]:
        """The published rows at play, with the streams of that training step; None on ranks that do not see them.

        Args:
            purpose: as of `JointEpisodes`.
        """
        c, rows = self._configuration, self._published.rows
        if rows is None:
            return nullcontext()
        actor = c.method.joint_actor(c, self._domain, rows)
        return JointEpisodes(self._domain, actor, c.seed, step, purpose=purpose)

    def turns(self, batches: list[range]) -> Iterator[tuple[dict[int, range], tuple[int, range] | None]]:
        """How the collectors share batches of episodes, one each at a turn.

        Yields:
            The episodes that every collector plays, by rank; and number and episodes of this rank's batch, if it has
            one.
        """
        for turn in self._layout.turns(len(batches)):
            number = turn.get(self._rank)
            members = {rank: batches[batch] for rank, batch in turn.items()}
            yield members, None if number is None else (number, batches[number])

    def empty_outcomes(self, episodes: int) -> Outcomes:
        """Arrays [N, episodes] to be filled in on rank 0, [0, episodes] elsewhere."""
        shape = self._domain.n_agents if self._record else 0, episodes
        ends = None if self._domain.absorbing_reward is None else np.empty(shape, bool)
        return Outcomes(np.empty(shape, np.float32), ends)

    def gather_outcomes(self, played: Outcomes | None, into: Outcomes, members: Mapping[int, range]) -> None:
        """Collectors → rank 0.

        Args:
            played: a batch, on the ranks in `members`; None elsewhere.
            into: of `empty_outcomes`, columns of which are filled in.
            members: the episodes of each rank's batch.
        """
        pairs = zip(played or (None,) * len(into), into, strict=True)
        arrays = [(source, target) for source, target in pairs if target is not None]
        self._exchange.deal_columns(arrays, members, to_owners=False)

    def references(self) -> None:
        """Hand-coded controllers on the GS, once, before training; the collectors share the work."""
        evaluation, seed = self._configuration.evaluation, self._configuration.seed
        batches = batches_of(evaluation.handcoded_episodes, evaluation.copies)
        for controller in self._domain.controllers if batches else ():

            def play(_, members, controller=controller):
                return play_controller(self._domain, controller, members, seed)

            result = Returns(*self._shared(batches, play))
            if not self._record:
                continue
            self._record.write(0, "reference", controller=controller, **result.as_record())
            self._record.progress.say(f"hand-coded reference, {controller}: return {result}")

    def evaluate(self, step: int, together: bool = False) -> None:
        """What is published, on the GS.

        Args:
            step: training steps so far.
            together: the collectors share the work and all ranks wait for them; else rank 0 does it, and the owners go
                on meanwhile: a rank 0 that owns no agents has until the next `Published.gather`.
        """
        evaluation = self._configuration.evaluation
        batches = batches_of(evaluation.episodes, evaluation.copies)
        if together:
            with self.joint_episodes(step) as episodes:
                self._keep(step, self._shared(batches, lambda *mine: episodes.play(*mine)))
        elif self._record:
            self._going_on = self._alone(step, batches)
            if self._layout.agents(0):
                self.finish()
        else:
            self._keep(step, self.empty_outcomes(0))

    def by_collection(self, segment: Segment, outcomes: Outcomes) -> None:
        """Records what the episodes collected at the beginning of a segment came to, if an evaluation is due there."""
        if segment.collection_evaluates and self.evaluated < segment.start:
            self._keep(segment.start, outcomes)

    def finish(self) -> None:
        """Rank 0 does what is left of an evaluation, if it has any; elsewhere nothing."""
        while self._one_step():
            self._exchange.receive_progress()

    def _one_step(self) -> bool:
        """A joint step of the evaluation that is going on; whether there is one."""
        if self._going_on is None:
            return False
        with self._clock("evaluate"):
            try:
                next(self._going_on)
            except StopIteration:
                self._going_on = None
        return True

    def _alone(self, step: int, batches: list[range]) -> Generator[None, None, None]:
        """Yields after each joint step; whoever lets it go on books the time."""
        outcomes = self.empty_outcomes(batches[-1].stop)
        with self.joint_episodes(step) as episodes:
            for number, members in enumerate(batches):
                played = yield from episodes.play_by_steps(number, members)
                for part, into in zip(played, outcomes, strict=True):
                    if into is not None:
                        into[:, members] = part
        self._keep(step, outcomes)

    def _shared(self, batches: list[range], play: Callable[[int, range], Outcomes]) -> Outcomes:
        """Of batches of episodes that the collectors share; as `empty_outcomes`, filled in.

        Args:
            play: called with number and episodes of a batch.
        """
        self._clock.stage = "evaluate"
        outcomes = self.empty_outcomes(batches[-1].stop)
        for members, mine in self.turns(batches):
            with self._clock("evaluate"):
                part = play(*mine) if mine else None
            self.gather_outcomes(part, outcomes, members)
        return outcomes

    def _keep(self, step: int, outcomes: Outcomes) -> None:
        """Writes figures and what is published; `outcomes` are on rank 0."""
        self.evaluated = step
        if not self._record:
            self._checkpoints.evaluated(step, None)
            return
        result = Returns(*outcomes)
        record = result.as_record()
        folder = self._record.directory.path
        if self._record.reference is not None:
            record["share_above_reference"] = share_above(record["per_agent"]["mean_return"], self._record.reference)
        self._record.write(step, "evaluate", **record)
        with self._clock("write"):
            names = ["policies.npz"]
            if self._checkpoints.evaluated(step, result.mean_return):
                names.append("policies_best.npz")
            for name in names:
                save_policies(folder / name, self._published.rows, self._published.shapes, step)
        self._record.progress.reached(step, f"return {result}")

    def load_reference(self) -> None:
        """On rank 0: what the best hand-coded controller earns, played now or before the run was resumed."""
        if self._record:
            self._record.reference = open_run(self._record.directory.path).best_reference
