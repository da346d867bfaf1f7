"""What learners are given over a whole run, by hand: schedules, episodes, and random streams by their names."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import reference_ppo
import ring
from conftest import of_mode, run_here

from dials_mpi.algorithms import dials
from dials_mpi.analysis.reading import open_run
from dials_mpi.config import resolve
from dials_mpi.influence.predictor import InfluencePredictor
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Player
from dials_mpi.learning.settings import PPO_STATISTICS
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.streams import stream
from dials_mpi.training.session import Session

AGENTS, COPIES, SEED = 3, 4, 7
SETTINGS = [
    "--env=ring:Ring",
    f"--agents={AGENTS}",
    f"--seed={SEED}",
    "--steps=600",
    f"--set=ppo.copies={COPIES}",
    "--set=ppo.rollout_length=25",
    "--set=ppo.sequence_length=25",
    "--set=ppo.minibatch_size=50",
    "--set=ppo.epochs=2",
    "--set=ppo.learning_rate=0.01",
    "--set=ppo.entropy_coefficient=0.3",
    "--set=ppo.clip_values=true",
    "--set=ppo.anneal_clip=true",
    "--set=ppo.anneal_entropy=true",
    "--set=policy.recurrent_size=6",
    "--set=policy.hidden_sizes=[8]",
    "--set=predictor.interval=400",
    "--set=predictor.epochs=1",
    "--set=predictor.hidden_sizes=[8]",
    "--set=dataset.steps=30",
    "--set=dataset.copies=2",
    "--set=evaluation.interval=600",
    "--set=evaluation.episodes=3",
    "--set=evaluation.copies=2",
    "--set=evaluation.handcoded_episodes=2",
]
"""Six updates in three units of two: 25 steps and 25 steps make five episodes of 10. Two AIP trainings."""
FIRST_STEPS = [0, 5, 0, 5, 0, 5]
PROGRESS = {400: [0, 0.25, 0.5, 0.75, 1, 1], None: [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6]}
"""By `anneal_steps`, at 100 steps per update."""


@dataclasses.dataclass
class Update:
    """One call of the learner: parameters by agent and name before and after, rollouts by agent, what was reported."""

    before: list
    after: list
    rollouts: list
    statistics: dict


class Watched:
    """A run in which every update and every use of a random stream is written down."""

    def __init__(self, folder, *arguments):
        self.updates: list[Update] = []
        self.acting: list[list] = []
        """Parameters by agent and name of the policies that a rollout was collected with."""
        self.streams: dict[str, list] = {}
        """What draws → the streams that it was given, in order, each as the state that tells it from all others."""
        with pytest.MonkeyPatch.context() as patch:
            self._watch_updates(patch)
            for owner, name, what, which in (
                (ring.RingLocalSimulator, "seed", "LS", lambda self, generators: generators),
                (ring.RingGlobalSimulator, "seed", "GS", lambda self, generators: generators),
                (InfluencePredictor, "noise", "influence", lambda self, generators, copies: generators),
                (Actor, "start", "actions", lambda self, generators: generators),
                (Player, "start", "joint actions", lambda self, copies, generators: generators),
                (PPO, "update", "minibatches", lambda self, rollout, first, progress, order: [order]),
                (dials, "train_by_epochs", "AIP minibatches", lambda predictor, data, fraction, order: [order]),
            ):
                self._watch_streams(patch, owner, name, what, which)
            begin = Session.begin

            def watched_from_here(session):  # the domain has been checked, with streams that are nobody's
                for log in self.streams.values():
                    log.clear()
                begin(session)

            patch.setattr(Session, "begin", watched_from_here)
            mode = next((a.removeprefix("--mode=") for a in arguments if a.startswith("--mode=")), "dials")
            self.path = run_here(folder, *of_mode(mode, SETTINGS), *arguments)
        self.settings = resolve([("run", open_run(self.path).configuration)], AGENTS, "ring:Ring").ppo

    def _watch_streams(self, patch, owner, name, what, which):
        original, log = getattr(owner, name), self.streams.setdefault(what, [])

        def watched(*arguments, **named):
            log.append([state(generator) for generator in which(*arguments, **named)])
            return original(*arguments, **named)

        patch.setattr(owner, name, watched)

    def _watch_updates(self, patch):
        original = PPO.update

        def watched(learner, rollout, *arguments):
            network = learner.policy.network

            def parameters():
                return [network.arrays_of(row) for row in range(AGENTS)]

            rows = [{name: array[row].copy() for name, array in rollout.arrays().items()} for row in range(AGENTS)]
            before = parameters()
            statistics = original(learner, rollout, *arguments)
            self.updates.append(Update(before, parameters(), rows, statistics))
            return statistics

        collect = Actor.collect

        def watched_actor(actor, *arguments):
            self.acting.append([actor._policy.network.arrays_of(row) for row in range(AGENTS)])
            return collect(actor, *arguments)

        patch.setattr(PPO, "update", watched)
        patch.setattr(Actor, "collect", watched_actor)


def state(generator):
    return generator.bit_generator.state["state"]["state"]


def named(purpose, members, round_):
    """States of fresh streams of that name."""
    return [state(stream(SEED, purpose, member, round_)) for member in members]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By mode and `anneal_steps`."""
    return {
        (mode, steps): Watched(
            tmp_path_factory.mktemp(mode), f"--mode={mode}", f"--set=ppo.anneal_steps={steps or 'null'}"
        )
        for mode, steps in (("dials", 400), ("dials", None), ("gs", 400))
    }


def taught(watched, progress, first_steps):
    """What the reference makes of the last agent's rollouts; yields its parameters and statistics by name."""
    agent = reference_ppo.Agent(watched.updates[0].before[-1])
    for number, update in enumerate(watched.updates):
        if number % 2 == 0:
            order = stream(SEED, "train/minibatches", 0, number // 2)
        for name, array in update.before[-1].items():
            agent.weights[name].data.copy_(agent.weights[name].new_tensor(array))
        rollout, first = update.rollouts[-1], first_steps[number]
        statistics = reference_ppo.update(agent, rollout, watched.settings, 10, first, progress[number], order)
        yield {name: w.detach().numpy().copy() for name, w in agent.weights.items()}, statistics


def furthest(one, other) -> float:
    """Largest difference of two agents' parameters."""
    return max(np.abs(one[name] - other[name]).max() for name in one)


@pytest.mark.parametrize(("mode", "anneal_steps"), [("dials", 400), ("dials", None), ("gs", 400)])
def test_every_update_of_a_run_is_the_references_by_the_schedule_worked_out_by_hand(runs, mode, anneal_steps):
    watched, progress = runs[mode, anneal_steps], PROGRESS[anneal_steps]
    assert len(watched.updates) == 6
    for one, following in pairwise(watched.updates):
        assert all(furthest(a, b) == 0 for a, b in zip(one.after, following.before, strict=True)), "nothing in between"
    references = taught(watched, progress, FIRST_STEPS)
    for update, done, (parameters, expected) in zip(watched.updates, progress, references, strict=True):
        assert furthest(update.after[-1], parameters) < 2e-6
        for name in PPO_STATISTICS:
            if done == 1 and name in ("clip_fraction", "gradient_norm"):
                continue  # with a clip of 0 rounding decides what is clipped; nothing is learned any more
            assert float(update.statistics[name][-1]) == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("mode", ["dials", "gs"])
def test_rollouts_are_collected_by_the_policies_as_the_last_update_left_them(runs, mode):
    watched = runs[mode, 400]
    assert len(watched.acting) == len(watched.updates) == 6
    for acting, update in zip(watched.acting, watched.updates, strict=True):
        assert all(furthest(a, b) == 0 for a, b in zip(acting, update.before, strict=True))
    assert furthest(watched.acting[0][0], watched.acting[1][0]) > 0


@pytest.mark.parametrize("mode", ["dials", "gs"])
def test_another_schedule_or_other_episodes_would_have_made_other_policies(runs, mode):
    watched = runs[mode, 400]
    others = [(PROGRESS[None], FIRST_STEPS), ([0] * 6, FIRST_STEPS), ([1] * 6, FIRST_STEPS), (PROGRESS[400], [0] * 6)]
    for progress, first_steps in others:
        pairs = zip(watched.updates[:2], taught(watched, progress, first_steps), strict=False)
        assert max(furthest(update.after[-1], parameters) for update, (parameters, _) in pairs) > 2e-4


def test_a_run_reports_the_means_of_its_updates(runs):
    for watched in runs.values():
        learned = [record for record in read_metrics(watched.path) if record["phase"] == "learn"]
        ends = [record["step"] // 100 for record in learned]
        assert ends[-1] == 6
        for record, first, end in zip(learned, [0, *ends], ends, strict=False):
            for name in PPO_STATISTICS:
                mean = np.mean([u.statistics[name] for u in watched.updates[first:end]], axis=0)
                np.testing.assert_allclose(record["per_agent"][name], mean, atol=2e-6, rtol=1e-5)
                assert record[name] == pytest.approx(mean.mean(), abs=2e-6, rel=1e-5)


def test_rollouts_are_of_the_ring_and_episodes_go_on_from_one_to_the_next(runs):
    """Pays for the own bit; an episode that begins has drawn new bits, where none does the neighbour's choice is it."""
    for (mode, _), watched in runs.items():
        for number, update in enumerate(watched.updates):
            bits = np.stack([rollout["observations"][..., 0] for rollout in update.rollouts])
            actions = np.stack([rollout["actions"] for rollout in update.rollouts])
            rewards = np.stack([rollout["rewards"] for rollout in update.rollouts])
            assert np.array_equal(rewards, actions == bits)
            if mode == "gs":
                begun = (FIRST_STEPS[number] + np.arange(25)) % 10 == 0
                told = np.roll(actions, 1, axis=0)[:, :-1] == bits[:, 1:]
                assert told[:, ~begun[1:]].all()
                assert not told[:, begun[1:]].all()


def test_every_unit_and_every_round_draws_from_streams_of_its_own(runs):
    agents, copies = range(AGENTS), range(COPIES)
    for (mode, _), watched in runs.items():
        drawn = watched.streams
        assert drawn["actions"] == [named("train/actions", agents, unit) for unit in range(3)]
        first_of_each_unit = drawn["minibatches"][::2]
        assert first_of_each_unit == [named("train/minibatches", [0], unit) for unit in range(3)]
        if mode == "dials":
            assert drawn["LS"] == [named("train/simulator", agents, unit) for unit in range(3)]
            assert drawn["influence"] == [named("train/influence", agents, unit) for unit in range(3)]
            assert drawn["AIP minibatches"] == [named("predictor/minibatches", [0], round_) for round_ in range(2)]
            learning = []
        else:
            learning = [named("train/simulator", copies, unit) for unit in range(3)]
        # Hand-coded controllers play the first episodes of all, then the policies: three episodes, two and one.
        references = [named("evaluate/simulator", range(2), 0)]
        steps = (0, 400, 600) if mode == "dials" else (0, 600)
        episodes = [named("evaluate/simulator", members, s) for s in steps for members in (range(2), range(2, 3))]
        assert sorted(drawn["GS"]) == sorted(learning + references + episodes)
        acting = [named("evaluate/actions", range(AGENTS * b, AGENTS * (b + 1)), s) for s in steps for b in range(2)]
        assert sorted(drawn["joint actions"]) == sorted(acting)


def test_agents_units_and_rounds_have_different_numbers_and_runs_of_one_seed_the_same(runs):
    for watched in runs.values():
        for what in ("LS", "influence", "actions", "AIP minibatches"):
            states = [one for group in watched.streams[what] for one in group]
            assert len(set(states)) == len(states), what
    one, other = runs["dials", 400], runs["dials", None]
    for first, second in zip(one.updates[0].rollouts, other.updates[0].rollouts, strict=True):
        assert all(np.array_equal(first[name], second[name]) for name in first), "learning differs only from then on"
    for unit in (1, 2):
        assert not np.array_equal(
            one.updates[0].rollouts[0]["observations"][:10], one.updates[2 * unit].rollouts[0]["observations"][:10]
        )
