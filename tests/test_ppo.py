"""PPO: advantages, truncation, independence of agents, and that it learns."""

import numpy as np
import pytest
import torch
from ring import Ring

from dials_mpi.learning.distributions import Categorical, Discrete
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO, episode_starts, generalised_advantages
from dials_mpi.learning.rollout import Actor, Rollout
from dials_mpi.learning.settings import PPO_STATISTICS, PolicySettings, PPOSettings
from dials_mpi.learning.statistics import Means
from dials_mpi.runs.clock import Clock
from dials_mpi.simulators.interface import DomainSettings, Step
from dials_mpi.streams import stream, streams


def acting(n_agents=2, seed=0, recurrent=8, agents=None, device="cpu", **ppo):
    """Policies, an actor in the ring's GS and a learner."""
    settings = PPOSettings(
        **{"copies": 6, "rollout_length": 20, "sequence_length": 10, "minibatch_size": 60, "anneal": False, **ppo}
    )
    domain = Ring(n_agents, DomainSettings())
    agents = range(n_agents) if agents is None else agents
    policy = Policy(agents, 2, 2, PolicySettings(recurrent_size=recurrent, hidden_sizes=(16,)), seed, device)
    simulator = domain.global_simulator(settings.copies)
    simulator.seed(streams(seed, "train/simulator", range(settings.copies)))
    actor = Actor(policy, simulator, settings.copies, domain, Clock())
    actor.start(streams(seed, "train/actions", range(n_agents)))
    rollout = Rollout.empty(n_agents, settings, 2, recurrent, device)
    return settings, policy, actor, PPO(policy, settings, domain.horizon), rollout


@pytest.mark.parametrize("recurrent", [0, 8])
def test_first_policies_choose_by_the_initial_logits_in_every_state(recurrent):
    settings = PolicySettings(recurrent_size=recurrent, hidden_sizes=(16,), initial_logits=(2.0, 0.0, -1.0))
    policy = Policy(range(3), 5, 3, settings, seed=0)
    observations = torch.rand(3, 50, 5, generator=torch.Generator().manual_seed(0))
    logits, _, _ = policy.step(observations, policy.initial_state(50))
    expected = torch.softmax(torch.tensor([2.0, 0.0, -1.0]), dim=0).expand(3, 50, 3)
    torch.testing.assert_close(torch.softmax(logits, dim=-1), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("logits", [None, (2.0, 0.0, -1.0)])
def test_first_policies_know_next_to_nothing_and_first_values_are_of_the_usual_size(logits):
    settings = PolicySettings(hidden_sizes=(16,), initial_logits=logits)
    head = Policy(range(2), 5, 3, settings, seed=0).network.arrays_of(1)
    squares = torch.from_numpy(head["layer1.weight"]).square().sum(dim=0)
    torch.testing.assert_close(squares, torch.tensor([1e-4, 1e-4, 1e-4, 1.0]))
    assert head["layer1.bias"].tolist() == [[*(logits or (0, 0, 0)), 0]]


def test_parameters_that_are_given_are_used_in_place_and_as_they_are():
    settings = PolicySettings(hidden_sizes=(16,), initial_logits=(2.0, 0.0))
    rows = Policy(range(2), 5, 2, settings, seed=0).parameters + 1
    before = rows.clone()
    policy = Policy(range(2), 5, 2, settings, seed=None, parameters=rows)
    assert torch.equal(policy.parameters, before)
    rows[1] = 0
    assert not policy.step(torch.ones(2, 1, 5), None)[0][1].any()


def test_means_go_on_where_they_were_written_down():
    means = Means()
    assert means.rows() == {}
    assert Means.from_rows({}).rows() == {}
    means.add({"loss": torch.tensor([1.0, 2.0])})
    means.add({"loss": torch.tensor([2.0, 6.0])})
    means = Means.from_rows(means.rows())
    means.add({"loss": torch.tensor([6.0, 1.0])})
    assert means.result()["loss"].tolist() == [3.0, 3.0]
    means = Means()
    means.add({"loss": torch.tensor([1.0])})
    assert Means.from_rows(means.rows()).result()["loss"].tolist() == [1.0], "an agent alone"


@pytest.mark.parametrize("first_step", [0, 3, 9])
def test_advantages_equal_the_textbook_recursion(first_step):
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 2, 25, 4, generator=generator)
    starts = episode_starts(first_step, 25, horizon=10)
    result = generalised_advantages(rewards, values, next_values, starts, discount=0.9, gae_lambda=0.8)
    expected, running = torch.empty_like(rewards), 0.0
    for t in reversed(range(25)):
        ends = t + 1 == 25 or bool(starts[t + 1])
        delta = rewards[:, t] + 0.9 * next_values[:, t] - values[:, t]
        running = delta + (0.0 if ends else 0.9 * 0.8) * running
        expected[:, t] = running
    torch.testing.assert_close(result, expected)


def test_truncation_bootstraps_from_the_last_observation():
    """At the horizon the next value is that of the last observation, not of the new episode's first."""
    _, policy, actor, _, rollout = acting(rollout_length=25, sequence_length=5, minibatch_size=30)
    successors = []
    step = actor._simulator.step

    def spy(actions):
        result = step(actions)
        successors.append(torch.from_numpy(result.observations).float())
        return result

    actor._simulator.step = spy
    actor.collect(rollout, 5)
    state = policy.initial_state(6)
    for t in range(25):
        if t % 10 == 0:
            state = policy.initial_state(6)
        _, value, state = policy.step(rollout.observations[:, t], state)
        assert torch.equal(rollout.values[:, t], value)
        _, next_value, _ = policy.step(successors[t], state)
        assert torch.equal(rollout.next_values[:, t], next_value)
    assert not torch.equal(rollout.next_values[:, 9], rollout.values[:, 10])


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("t", [0, 8, 9, 10, 24, 25, 29])  # of episodes of 10 steps, in rollouts of 25
def test_values_that_are_not_finite_end_the_rollout_that_met_with_them(what, t):
    _, _, actor, _, rollout = acting(n_agents=3, rollout_length=25, sequence_length=5, minibatch_size=30)
    simulator, steps = actor._simulator, iter(range(50))
    step = simulator.step

    def spoilt(actions):
        observations, rewards, _ = step(actions)
        observations = observations.astype(np.float32)
        if next(steps) == t:
            (observations if what == "observation" else rewards)[1, 4] = np.inf
            rewards[2, 0] = np.nan if what == "reward" else rewards[2, 0]
        return Step(observations, rewards)

    simulator.step = spoilt
    if t >= 25:
        actor.collect(rollout, 5)
    place = f"at step {t % 10}, agent 1, copy 4 is not finite"
    with pytest.raises(FloatingPointError, match=rf"^domain ring: GlobalSimulator: {what} inf {place}$"):
        actor.collect(rollout, 5)


def test_of_values_that_are_not_finite_the_first_is_named():
    _, _, actor, _, rollout = acting(rollout_length=25, sequence_length=5, minibatch_size=30)
    step, steps = actor._simulator.step, iter(range(25))

    def spoilt(actions):
        observations, rewards, _ = step(actions)
        t, observations = next(steps), observations.astype(np.float32)
        observations[0, 3] = np.nan if t == 6 else 0
        rewards[1, 2] = np.nan if t == 5 else 0
        return Step(observations, rewards)

    actor._simulator.step = spoilt
    with pytest.raises(FloatingPointError, match=r"reward nan at step 5, agent 1, copy 2 is not finite$"):
        actor.collect(rollout, 5)


def test_large_values_are_not_taken_for_infinite_ones():
    _, _, actor, _, rollout = acting(rollout_length=25, sequence_length=5, minibatch_size=30)
    step = actor._simulator.step
    actor._simulator.step = lambda actions: Step(step(actions).observations, np.full((2, 6), 3e38, np.float32))
    actor.collect(rollout, 5)
    assert (rollout.rewards == 3e38).all()


def test_rollout_holds_what_the_policy_that_acted_would_say_again(device):
    _, policy, actor, _, rollout = acting(device=device)
    actor.collect(rollout, 10)
    starts = episode_starts(0, 20, 10).to(device)
    keep = 1.0 - starts.float()[:, None].expand(-1, 6)
    logits, values = policy.unroll(rollout.observations, rollout.states[:, 0], keep)
    torch.testing.assert_close(values, rollout.values)
    log_probabilities = torch.log_softmax(logits, dim=-1).gather(-1, rollout.actions[..., None])[..., 0]
    torch.testing.assert_close(log_probabilities, rollout.log_probabilities)


def test_every_sequence_begins_with_the_memory_that_the_policy_had_there():
    """In the middle of episodes, too: sequences of 4 steps, episodes of 10."""
    _, policy, actor, _, rollout = acting(sequence_length=4, minibatch_size=60)
    actor.collect(rollout, 4)
    state = None
    for t in range(20):
        if t % 10 == 0:
            state = policy.initial_state(6)
        if t % 4 == 0:
            assert torch.equal(rollout.states[:, t // 4], state)
            assert (state.abs().max() > 0) == (t > 0)
        _, _, state = policy.step(rollout.observations[:, t], state)


def test_first_update_sees_no_difference_to_the_policy_that_acted(device):
    """Ratio one, KL zero: sequences, memories and minibatches are cut the way they were lived."""
    _, _, actor, learner, rollout = acting(epochs=1, learning_rate=1e-12, device=device)
    actor.collect(rollout, 10)
    statistics = learner.update(rollout, 0, 0.0, np.random.default_rng(0))
    assert set(statistics) == set(PPO_STATISTICS)
    assert statistics["approx_kl"].abs().max() < 1e-6
    assert statistics["clip_fraction"].max() == 0


def test_agents_are_updated_as_if_each_were_alone():
    settings, policy, actor, learner, rollout = acting(n_agents=3, epochs=3)
    actor.collect(rollout, 10)
    single = Policy([2], 2, 2, PolicySettings(recurrent_size=8, hidden_sizes=(16,)), 0)
    assert torch.equal(single.parameters[0], policy.parameters[2])
    learner.update(rollout, 0, 0.0, np.random.default_rng(5))
    alone = Rollout(**{name: torch.from_numpy(array[2:]) for name, array in rollout.arrays().items()})
    PPO(single, settings, 10).update(alone, 0, 0.0, np.random.default_rng(5))
    assert torch.equal(single.parameters[0], policy.parameters[2])


def test_another_device_learns_the_same_up_to_rounding(device):
    learned = []
    for where in ("cpu", device):
        settings, policy, actor, _, rollout = acting(epochs=3)
        actor.collect(rollout, 10)
        elsewhere = acting(device=where)[1]
        assert torch.equal(elsewhere.parameters.cpu(), policy.parameters), "parameters are drawn on the CPU"
        PPO(elsewhere, settings, 10).update(rollout.to(where), 0, 0.0, np.random.default_rng(0))
        learned.append(elsewhere.parameters.cpu())
    torch.testing.assert_close(*learned, rtol=1e-3, atol=1e-4)


def test_annealing_ends_at_no_change():
    _, policy, actor, learner, rollout = acting(anneal=True, anneal_clip=True)
    actor.collect(rollout, 10)
    before = policy.parameters.clone()
    learner.update(rollout, 0, 1.0, np.random.default_rng(0))
    assert torch.equal(policy.parameters, before)


def test_reward_scale_changes_what_is_learned_and_not_the_reported_returns():
    """A tenth of a reward of at most 1 for each of 10 steps: a return of at most 1, were it not for the report."""
    learned = []
    for scale in (1.0, 0.1):
        _, policy, actor, learner, rollout = acting(reward_scale=scale)
        actor.collect(rollout, 10)
        statistics = learner.update(rollout, 0, 0.0, np.random.default_rng(0))
        paid = (rollout.actions == rollout.observations[..., 0]).double().mean(dim=(1, 2))
        assert (paid > 0.2).all()
        torch.testing.assert_close(statistics["training_return"].double(), 10 * paid)
        learned.append((policy.parameters, statistics["value_loss"]))
    assert (learned[0][0] - learned[1][0]).abs().max() > 1e-3
    assert (learned[1][1] < 0.2 * learned[0][1]).all(), "the critic has learned of small rewards"


@pytest.mark.parametrize("recurrent", [0, 8])
def test_learns_the_ring(recurrent, device):
    """Every agent finds what always pays; all choosing 1, whatever their first bits, is as good as an answer gets."""
    sequence = 10 if recurrent else 1
    _, _, actor, learner, rollout = acting(
        n_agents=3, recurrent=recurrent, sequence_length=sequence, learning_rate=1e-2, anneal=True, device=device
    )
    actor.collect(rollout, sequence)
    assert rollout.rewards.mean() < 0.7, "it has to be learned"
    for update in range(100):
        learner.update(rollout, 0, update / 100, stream(0, "train/minibatches", round_=update))
        actor.collect(rollout, sequence)
    assert (rollout.rewards.mean(dim=(1, 2)) > 0.9).all()


def test_sampled_actions_follow_the_policy():
    logits = torch.tensor([[1.0, 0.0, -1.0]]).expand(1, 20000, 3)
    noise = Discrete(3).noise(streams(0, "train/actions", [0]), 20000)
    share = torch.bincount(Categorical(logits).sample(noise)[0], minlength=3) / 20000
    torch.testing.assert_close(share, torch.softmax(logits[0, 0], 0), atol=0.015, rtol=0)
