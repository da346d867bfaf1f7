"""Episodes that are over early, from the simulators to what is learned and reported of them."""

import numpy as np
import pytest
import torch
from cliff import Cliff, CliffLocalSimulator, CliffSettings
from conftest import SMALL, of_mode
from test_command_line import one_line

from dials_mpi.errors import UserError
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO, generalised_advantages
from dials_mpi.learning.rollout import Actor, Player, Rollout
from dials_mpi.learning.settings import PolicySettings, PPOSettings
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.registry import make_domain
from dials_mpi.streams import stream, streams
from dials_mpi.training.evaluation import Returns, evaluate_actor, evaluate_controller

SETTINGS = PPOSettings(
    copies=20,
    rollout_length=20,
    sequence_length=1,
    minibatch_size=100,
    learning_rate=1e-2,
    anneal=True,
    discount=0.9,
    reward_scale=0.1,
)


def cliff(n_agents=2, **settings):
    return Cliff(n_agents, CliffSettings(**settings))


def acting(domain, settings=SETTINGS, initial_logits=None, recurrent=0):
    policy_settings = PolicySettings(hidden_sizes=(16,), initial_logits=initial_logits, recurrent_size=recurrent)
    policy = Policy(range(domain.n_agents), 2, 2, policy_settings, 0)
    simulator = domain.global_simulator(settings.copies)
    simulator.seed(streams(0, "train/simulator", range(settings.copies)))
    actor = Actor(policy, simulator, settings.copies, domain, Clock())
    actor.start(streams(0, "train/actions", range(domain.n_agents)))
    return actor, policy, Rollout.of_domain(domain, domain.n_agents, settings, recurrent)


@pytest.mark.parametrize(("penalty", "leaps"), [(0.9, True), (1.05, True), (1.2, False), (1.4, False)])
def test_an_end_is_avoided_exactly_when_what_follows_is_worse(penalty, leaps):
    """γ = 0.9: walking on is worth -10, leaping -9 times the penalty. (So it is at 10 / 9 that minds change.)"""
    domain = cliff(penalty=penalty)
    actor, policy, rollout = acting(domain)
    learner = PPO(policy, SETTINGS, domain.horizon, absorbing_reward=domain.absorbing_reward)
    actor.collect(rollout, 1)
    for update in range(100):
        learner.update(rollout, 0, update / 100, stream(0, "train/minibatches", round_=update))
        actor.collect(rollout, 1)
    goes_on = rollout.observations[..., 0] == 1
    share = torch.stack([(a[on] == 1).float().mean() for a, on in zip(rollout.actions, goes_on, strict=True)])
    assert (share > 0.9).all() if leaps else (share < 0.1).all(), share
    worth = -0.9 * penalty if leaps else -1.0
    values = rollout.values[goes_on]
    torch.testing.assert_close(values, torch.full_like(values, worth), atol=0.08, rtol=0)


def test_rollouts_hold_whose_episode_was_over_before_each_step_and_after_the_last():
    """Three rollouts of 25 steps, in episodes of ten."""
    settings = SETTINGS.model_copy(update={"rollout_length": 25, "minibatch_size": 100})
    actor, _, rollout = acting(cliff(), settings, initial_logits=(2.0, 0.0))
    step, ends = actor._simulator.step, []

    def spy(actions):
        ends.append(step(actions))
        return ends[-1]

    actor._simulator.step = spy
    for number in range(3):
        actor.collect(rollout, 5)
        seen = np.stack([step.terminated for step in ends[25 * number : 25 * (number + 1)]], axis=1)
        assert np.array_equal(rollout.over[:, 1:].numpy(), seen)
        if number == 1:  # in the middle of an episode
            assert ends[24].terminated.any()
            assert np.array_equal(rollout.over[:, 0].numpy(), ends[24].terminated)
        else:
            assert not rollout.over[:, 0].any()
        steps = (25 * number + np.arange(25)) % 10
        absorbed = rollout.over[:, :-1].numpy() & (steps != 0)[:, None]
        assert np.array_equal(absorbed, rollout.observations[..., 1].numpy() == 1), "it shows in what is observed"
    assert not Rollout.of_domain(cliff(), 2, SETTINGS, 0).over.any()


def test_advantages_stop_at_an_early_end_and_are_nothing_after_it():
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 1, 6, 1, generator=generator)
    counts = torch.tensor([True, True, True, False, False, False])[None, :, None]
    starts = torch.arange(6) == 0
    found = generalised_advantages(rewards, values, next_values, starts, 0.9, 0.8, counts)[0, :, 0]
    delta = (rewards + 0.9 * next_values - values)[0, :, 0]
    assert not found[3:].any()
    torch.testing.assert_close(found[2], delta[2])
    torch.testing.assert_close(found[1], delta[1] + 0.72 * delta[2])
    torch.testing.assert_close(found[0], delta[0] + 0.72 * delta[1] + 0.72**2 * delta[2])


@pytest.mark.parametrize("recurrent", [0, 8])
def test_what_is_lived_after_an_early_end_changes_nothing_that_is_learned(recurrent):
    """Other rewards, values, observations and actions there; but the return that is reported is of all steps."""
    settings = SETTINGS.model_copy(update={"sequence_length": 10 if recurrent else 1})
    learned, reported = [], []
    for spoilt in (False, True):
        domain = cliff()
        actor, policy, rollout = acting(domain, settings, recurrent=recurrent)
        actor.collect(rollout, settings.sequence_length)
        absorbed = rollout.observations[..., 1] == 1
        assert absorbed.float().mean() > 0.5
        if spoilt:
            for name in ("rewards", "values", "log_probabilities", "observations"):
                getattr(rollout, name)[absorbed] += 5.0
            rollout.actions[absorbed] = 1
            rollout.next_values[rollout.over[:, 1:]] -= 7.0
        learner = PPO(policy, settings, domain.horizon, absorbing_reward=domain.absorbing_reward)
        statistics = learner.update(rollout, 0, 0.0, np.random.default_rng(0))
        reported.append(statistics.pop("training_return"))
        learned.append((policy.parameters, statistics))
    assert torch.equal(learned[0][0], learned[1][0])
    for name, values in learned[0][1].items():
        assert torch.equal(values, learned[1][1][name]), name
    torch.testing.assert_close(reported[1] - reported[0], 50 * absorbed.float().mean(dim=(1, 2)))


def test_returns_hold_what_an_early_end_costs_and_records_how_often_there_is_one():
    domain = cliff(n_agents=3, penalty=4.0)
    check_domain(domain)
    walk, leap = (evaluate_controller(domain, controller, 5, seed=0, copies=2) for controller in domain.controllers)
    assert walk.as_record()["mean_return"] == -10
    assert walk.as_record()["ended_early"] == 0
    assert leap.as_record()["mean_return"] == -36
    assert leap.as_record()["ended_early"] == 1
    assert str(leap) == "-36.00 ± 0.00 (agents -36.00 to -36.00, 100 % of the episodes ended early)"
    # Each of three agents leaps at each of ten steps with probability 1 / (1 + e⁴): in 42 % of the episodes somebody.
    policy = Policy(range(3), 2, 2, PolicySettings(hidden_sizes=(4,), initial_logits=(4.0, 0.0)), 0)
    returns = evaluate_actor(domain, Player(policy), 400, seed=0, step=0, copies=100)
    assert returns.ended_early == pytest.approx(1 - (1 - 1 / (1 + np.exp(4))) ** 30, abs=0.08)
    assert returns.ends.shape == returns.episodes.shape
    assert np.array_equal(returns.ends, returns.episodes != -10)


def test_one_agent_s_end_makes_an_episode_one_that_ended_early():
    ends = np.array([[True, False, False, False], [True, True, False, False]])
    returns = Returns(np.zeros((2, 4), np.float32), ends)
    assert returns.ended_early == 0.5
    assert returns.as_record()["ended_early"] == 0.5
    assert "ended_early" not in Returns(np.zeros((2, 4), np.float32)).as_record()
    assert "ended" not in str(Returns(np.zeros((2, 4), np.float32)))


@pytest.mark.parametrize(
    ("env", "mode", "settings"),
    [("cliff:Cliff", "dials", []), ("platoon", "gs", ["--set=domain.horizon=300", "--set=domain.scenario=slow-down"])],
)
def test_runs_record_and_show_early_ends(command_line, env, mode, settings):
    result = command_line(f"--env={env}", f"--mode={mode}", "--agents=3", "--name=r", *of_mode(mode, SMALL), *settings)
    assert result.returncode == 0, result.stderr
    records = [r for r in read_metrics(command_line.folder / "runs" / "r") if r["phase"] in ("evaluate", "reference")]
    assert all(0 <= record["ended_early"] <= 1 for record in records)
    assert any(record["ended_early"] for record in records)
    evaluations = [record for record in records if record["phase"] == "evaluate"]
    shown = [line for line in result.stdout.splitlines() if "ended early" in line]
    assert len(shown) == len(records)
    for record in evaluations:
        assert any(f"{100 * record['ended_early']:.0f} % of the episodes ended early" in line for line in shown)


def test_runs_without_early_ends_say_nothing_of_them(small_run):
    assert not any("ended_early" in record for record in read_metrics(small_run))


def test_for_ever_has_no_value_without_a_discount(command_line):
    settings = PPOSettings(discount=1.0)
    settings.check(cliff(penalty=0.0))
    PPO(Policy(range(2), 2, 2, PolicySettings(), 0), settings, 10, absorbing_reward=0.0)
    result = command_line("--env=cliff:Cliff", "--set=ppo.discount=1", *SMALL)
    assert result.returncode == 2
    assert one_line(result) == (
        "dials_mpi: ppo.discount: 1 has no value for an agent of domain cliff whose episode was over early, -2 at "
        "every step for ever; take less than 1"
    )
    settings.check(make_domain("ring:Ring", 3, CliffSettings()))


def test_a_domain_whose_steps_terminate_says_what_is_paid_afterwards():
    domain = cliff()
    domain.absorbing_reward = None
    with pytest.raises(UserError) as error:
        check_domain(domain)
    assert str(error.value) == (
        "domain cliff: GlobalSimulator.step: terminated is given, but the domain has no absorbing_reward"
    )


def test_a_local_simulator_that_ends_elsewhere_than_the_global_one_is_refused():
    """Although it pays and shows the same."""

    class GoesOn(CliffLocalSimulator):
        def step(self, *arguments):
            step = super().step(*arguments)
            return step._replace(terminated=np.zeros(self._shape, bool))

    class Mine(Cliff):
        def local_simulator(self, agents, copies):
            return GoesOn(len(agents), copies, self.settings)

    with pytest.raises(UserError) as error:
        check_domain(Mine(2, CliffSettings()))
    line = str(error.value)
    assert "lives another one: first at step 0, agent 0, copy " in line
    assert "where the early end is 0 instead of 1; different are 0 of " in line
    assert " early ends (disagreement 1, " in line
