"""One PPO update, number by number: against a reference in plain float64, with every setting at work."""

import numpy as np
import pytest
import reference_ppo
import torch

from dials_mpi.learning.distributions import Continuous
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Rollout
from dials_mpi.learning.settings import PPO_STATISTICS, PolicySettings, PPOSettings

A, OBSERVED, ACTIONS, HORIZON = 2, 4, 3, 10
EVERYTHING = PPOSettings(
    copies=3,
    rollout_length=24,
    sequence_length=8,
    minibatch_size=24,
    epochs=3,
    learning_rate=3e-3,
    discount=0.9,
    gae_lambda=0.8,
    clip=0.2,
    clip_values=True,
    value_coefficient=0.7,
    entropy_coefficient=0.05,
    max_gradient_norm=0.3,
    reward_scale=0.4,
    anneal=True,
    anneal_clip=True,
    anneal_entropy=True,
)
"""Three minibatches of three sequences. Episodes begin in the middle of some sequences and at the start of others."""
WITHOUT_MEMORY = EVERYTHING.model_copy(update={"sequence_length": 1})
PROGRESS = (0.3, 0.6)
FIRST_STEPS = (3, 2)
TOLERANCE = 2e-6
MATTERS = 100 * TOLERANCE
"""By which something that is left out changes the parameters at least; they move by about 0.03 in two updates."""


def made_up_rollout(
    s: PPOSettings,
    state_size: int,
    seed: int,
    masked: int = 0,
    action_size: int = 0,
    ends: tuple[int, int] | None = None,
) -> Rollout:
    """Of policies that have changed since: ratios and values are on both sides of what is clipped."""
    g = torch.Generator().manual_seed(seed)
    rollout = Rollout.empty(A, s, OBSERVED, state_size, "cpu", action_size, masked, ends is not None)
    for name, scale in {"observations": 1.0, "rewards": 2.0, "values": 0.3, "next_values": 0.3, "states": 0.5}.items():
        getattr(rollout, name).normal_(generator=g).mul_(scale)
    if not action_size:
        rollout.actions.random_(ACTIONS, generator=g)
    rollout.log_probabilities.normal_(generator=g).mul_(0.2).sub_(np.log(ACTIONS))
    if masked:
        rollout.available.random_(2, generator=g).scatter_(-1, rollout.actions[..., None], True)
    if action_size:  # of policies that forget everything, which is near enough
        policy, steps = policies(state_size, action_size), s.rollout_steps
        means = policy.step(rollout.observations.flatten(1, 2), policy.initial_state(steps))[0]
        means = means.view(rollout.actions.shape)
        rollout.actions.normal_(generator=g).mul_(0.6).add_(means)
        now = policy.distribution(means).log_probability(rollout.actions).detach()
        rollout.log_probabilities.add_(np.log(ACTIONS)).add_(now)
    if ends is not None:  # horizon, and steps before the rollout
        horizon, first_step = ends
        over = torch.rand(rollout.over.shape, generator=g) < 0.15
        over[:, 0] &= first_step % horizon != 0
        for t in range(s.rollout_length):
            over[:, t + 1] |= over[:, t] & ((first_step + t) % horizon != 0)
        rollout.over[:] = over
    return rollout


def policies(recurrent: int, action_size: int = 0) -> Policy:
    actions = Continuous(action_size, -1, 1) if action_size else ACTIONS
    policy = Policy(range(A), OBSERVED, actions, PolicySettings(recurrent_size=recurrent, hidden_sizes=(6,)), seed=0)
    policy.parameters.add_(torch.randn(policy.parameters.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return policy


def maker(s, horizon, first_steps, recurrent, absorbing_reward: float | None = None, change=lambda _: None, **more):
    """What makes up the rollout of a seed, and what the domain pays whose episode was over early."""

    def made_up(seed: int) -> Rollout:
        ends = None if absorbing_reward is None else (horizon, first_steps[seed])
        rollout = made_up_rollout(s, recurrent, seed, ends=ends, **more)
        change(rollout)
        return rollout

    return made_up, absorbing_reward or 0.0


def learned(s: PPOSettings, horizon: int = HORIZON, first_steps=FIRST_STEPS, recurrent: int = 5, **more):
    """Two updates by the product: parameters [A, P] and statistics [2, A] by name after them."""
    made_up, absorbing_reward = maker(s, horizon, first_steps, recurrent, **more)
    policy = policies(recurrent, more.get("action_size", 0))
    learner = PPO(policy, s, horizon, absorbing_reward=absorbing_reward)
    found = [
        learner.update(made_up(seed), first_steps[seed], PROGRESS[seed], np.random.default_rng(seed))
        for seed in range(2)
    ]
    return policy.parameters.numpy().copy(), {
        name: torch.stack([f[name] for f in found]).numpy() for name in PPO_STATISTICS
    }


def expected(s: PPOSettings, horizon: int = HORIZON, first_steps=FIRST_STEPS, recurrent: int = 5, **more):
    """The same by the reference."""
    made_up, absorbing_reward = maker(s, horizon, first_steps, recurrent, **more)
    network = policies(recurrent, more.get("action_size", 0)).network
    parameters, found = [], []
    for row in range(A):
        agent = reference_ppo.Agent(network.arrays_of(row))
        for seed in range(2):
            rollout = {name: array[row] for name, array in made_up(seed).arrays().items()}
            when, order = (first_steps[seed], PROGRESS[seed]), np.random.default_rng(seed)
            found.append(reference_ppo.update(agent, rollout, s, horizon, *when, order, absorbing_reward))
        parameters.append(torch.cat([w.detach().ravel() for w in agent.weights.values()]).numpy())
    statistics = {name: np.array([f[name] for f in found]).reshape(A, 2).T for name in found[0]}
    return np.stack(parameters), statistics


def assert_same(result, reference):
    (parameters, statistics), (true_parameters, true_statistics) = result, reference
    np.testing.assert_allclose(parameters, true_parameters, rtol=0, atol=TOLERANCE)
    assert set(statistics) == set(true_statistics) == set(PPO_STATISTICS)
    for name, values in statistics.items():
        np.testing.assert_allclose(values, true_statistics[name], rtol=2e-5, atol=TOLERANCE, err_msg=name)


def difference(one, other) -> float:
    """Of the agent whose parameters differ least."""
    return float(np.abs(one[0] - other[0]).max(axis=1).min())


@pytest.fixture(scope="module")
def truth():
    return expected(EVERYTHING)


def test_two_updates_equal_the_reference_with_every_setting_at_work(truth):
    assert_same(learned(EVERYTHING), truth)


@pytest.mark.parametrize(
    "change",
    [
        {"discount": 0.99},
        {"gae_lambda": 0.95},
        {"clip": 0.4},
        {"clip_values": False},
        {"value_coefficient": 0.5},
        {"entropy_coefficient": 0.0},
        {"max_gradient_norm": None},
        {"reward_scale": 1.0},
        {"anneal": False},
        {"anneal_clip": False},
        {"anneal_entropy": False},
        {"epochs": 2},
        {"minibatch_size": 72},
        {"minibatch_size": 800},
        {"learning_rate": 1e-3},
    ],
    ids=lambda change: "-".join(f"{name}={value}" for name, value in change.items()),
)
def test_every_setting_does_what_it_does_in_the_reference(truth, change):
    s = EVERYTHING.model_copy(update=change)
    reference = expected(s)
    assert difference(reference, truth) > MATTERS, "it matters in these rollouts"
    assert_same(learned(s), reference)


@pytest.mark.parametrize(
    ("piece", "instead"),
    [
        ("wiped", lambda memory, _: memory),
        ("what_follows", lambda advantage, _: advantage),
        ("normalised", lambda advantages, _: advantages),
        ("pessimistic", lambda surrogate, _: surrogate),
        ("pessimistic", torch.maximum),
        ("larger", torch.minimum),
        ("larger", lambda _, clipped_error: clipped_error),
    ],
)
def test_every_piece_of_the_reference_matters_in_these_rollouts(truth, monkeypatch, piece, instead):
    monkeypatch.setattr(reference_ppo, piece, instead)
    assert difference(expected(EVERYTHING), truth) > MATTERS


@pytest.mark.parametrize(
    ("horizon", "first_steps"), [(HORIZON, (0, 4)), (24, (0, 0)), (100, (30, 54)), (8, (0, 0)), (1, (0, 0))]
)
def test_episodes_may_begin_anywhere_in_a_rollout(horizon, first_steps):
    assert_same(learned(EVERYTHING, horizon, first_steps), expected(EVERYTHING, horizon, first_steps))


@pytest.mark.parametrize("length", [24, 1])
def test_a_policy_without_memory_learns_from_single_steps(length):
    s = WITHOUT_MEMORY.model_copy(update={"rollout_length": length, "minibatch_size": min(24, 3 * length)})
    assert_same(learned(s, recurrent=0), expected(s, recurrent=0))


@pytest.mark.parametrize("recurrent", [0, 5])
def test_actions_that_are_not_available_have_no_part_in_an_update(truth, recurrent):
    s = EVERYTHING if recurrent else WITHOUT_MEMORY
    reference = expected(s, recurrent=recurrent, masked=ACTIONS)
    if recurrent:
        assert difference(reference, truth) > MATTERS
    assert_same(learned(s, recurrent=recurrent, masked=ACTIONS), reference)


@pytest.mark.parametrize("action_size", [1, 2])
@pytest.mark.parametrize("recurrent", [0, 5])
def test_continuous_actions_are_learned_as_in_the_reference(recurrent, action_size):
    s = (EVERYTHING if recurrent else WITHOUT_MEMORY).model_copy(update={"entropy_coefficient": 0.2})
    result = learned(s, recurrent=recurrent, action_size=action_size)
    assert_same(result, expected(s, recurrent=recurrent, action_size=action_size))
    before = policies(recurrent, action_size).parameters.numpy()
    assert (abs(result[0] - before)[:, -action_size:] > MATTERS).all(), "deviations are learned"
    assert (result[1]["clip_fraction"] > 0).all()
    assert (result[1]["clip_fraction"] < 1).all()


UNLIMITED = EVERYTHING.model_copy(update={"max_gradient_norm": None})
"""A limit hides that a mean is of too many."""


@pytest.fixture(scope="module")
def truth_with_ends():
    return expected(UNLIMITED, absorbing_reward=-3.0)


@pytest.mark.parametrize(
    ("horizon", "first_steps"), [(HORIZON, FIRST_STEPS), (24, (0, 0)), (100, (30, 54)), (8, (0, 0)), (1, (0, 0))]
)
@pytest.mark.parametrize("absorbing_reward", [-3.0, 0.0])
def test_steps_after_an_early_end_count_for_nothing(horizon, first_steps, absorbing_reward):
    about = EVERYTHING, horizon, first_steps
    assert_same(learned(*about, absorbing_reward=absorbing_reward), expected(*about, absorbing_reward=absorbing_reward))


def test_early_ends_matter_to_single_steps_and_other_kinds_of_actions_alike():
    s = WITHOUT_MEMORY
    for more in ({}, {"masked": ACTIONS}, {"action_size": 2}):
        more = {**more, "recurrent": 0, "absorbing_reward": 2.0}
        assert_same(learned(s, **more), expected(s, **more))


@pytest.mark.parametrize(
    ("piece", "instead"),
    [
        ("still_on", lambda before, _: torch.ones_like(before)),
        ("still_on", lambda before, _: ~before),
        ("for_ever", lambda reward, _: 0.0),
        ("for_ever", lambda reward, _: reward),
        ("mean", lambda x, _: x.mean()),
        ("mean", lambda x, counted: (x * counted).mean()),
        ("normalised", lambda x, _: (x - x.mean()) / x.std(unbiased=False)),
    ],
)
def test_every_piece_of_what_an_early_end_is_matters_in_these_rollouts(truth_with_ends, monkeypatch, piece, instead):
    monkeypatch.setattr(reference_ppo, piece, instead)
    assert difference(expected(UNLIMITED, absorbing_reward=-3.0), truth_with_ends) > MATTERS


@pytest.mark.parametrize("recurrent", [0, 5])
def test_who_has_no_step_that_counts_learns_nothing_and_the_others_as_ever(recurrent):
    """Agent 0 in all of the rollout, agent 1 but for a few steps of one copy: some of its minibatches have none."""

    def absorbed(rollout):
        rollout.over[0] = True
        rollout.over[1, :, :2] = True
        rollout.over[1, :5, 2] = False
        rollout.over[1, 5:, 2] = True

    s = (EVERYTHING if recurrent else WITHOUT_MEMORY).model_copy(update={"minibatch_size": 8})
    about = {"horizon": 1000, "first_steps": (30, 54), "recurrent": recurrent, "absorbing_reward": -3.0}
    result = learned(s, **about, change=absorbed)
    assert_same(result, expected(s, **about, change=absorbed))
    assert np.array_equal(result[0][0], policies(recurrent).parameters[0].numpy())
    assert not np.array_equal(result[0][1], policies(recurrent).parameters[1].numpy())


def test_an_update_without_early_ends_is_the_same_whether_a_domain_may_have_them_or_not():
    def goes_on(rollout):
        rollout.over[:] = False

    some, none = (learned(EVERYTHING, **more) for more in ({"absorbing_reward": -3.0, "change": goes_on}, {}))
    np.testing.assert_allclose(some[0], none[0], rtol=0, atol=TOLERANCE)


SHARED = PolicySettings(recurrent_size=5, hidden_sizes=(6,), shared=True)


def shared_policy() -> Policy:
    policy = Policy(range(A), OBSERVED, ACTIONS, SHARED, seed=0)
    policy.parameters.add_(torch.randn(policy.parameters.shape[1], generator=torch.Generator().manual_seed(1)) * 0.2)
    return policy


def mean(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64).mean(axis=0).astype(np.float32)


def test_a_shared_policy_learns_from_the_mean_loss_of_all_agents():
    policy = shared_policy()
    assert torch.equal(policy.parameters[0], policy.parameters[1]), "as initialised"
    learner, agent = PPO(policy, EVERYTHING, HORIZON, mean), reference_ppo.Agent(policy.network.arrays_of(0))
    for seed in range(2):
        when = FIRST_STEPS[seed], PROGRESS[seed]
        arrays = made_up_rollout(EVERYTHING, 5, seed).arrays()
        found = learner.update(made_up_rollout(EVERYTHING, 5, seed), *when, np.random.default_rng(seed))
        rows = [{name: array[row] for name, array in arrays.items()} for row in range(A)]
        true = reference_ppo.update_together(agent, rows, EVERYTHING, HORIZON, *when, np.random.default_rng(seed))
        for name in PPO_STATISTICS:
            expected_ = [each[name] for each in true]
            np.testing.assert_allclose(found[name], expected_, rtol=2e-5, atol=TOLERANCE, err_msg=name)
    parameters = torch.cat([w.detach().ravel() for w in agent.weights.values()]).numpy()
    for row in policy.parameters.numpy():
        np.testing.assert_allclose(row, parameters, rtol=0, atol=TOLERANCE)
    assert np.array_equal(policy.parameters[0], policy.parameters[1])
