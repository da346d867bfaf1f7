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


def made_up_rollout(s: PPOSettings, state_size: int, seed: int, masked: int = 0, action_size: int = 0) -> Rollout:
    """Of policies that have changed since: ratios and values are on both sides of what is clipped."""
    g = torch.Generator().manual_seed(seed)
    rollout = Rollout.empty(A, s, OBSERVED, state_size, masked=masked, action_size=action_size)
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
    return rollout


def policies(recurrent: int, action_size: int = 0) -> Policy:
    actions = Continuous(action_size, -1, 1) if action_size else ACTIONS
    policy = Policy(range(A), OBSERVED, actions, PolicySettings(recurrent_size=recurrent, hidden_sizes=(6,)), seed=0)
    policy.parameters.add_(torch.randn(policy.parameters.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return policy


def learned(s: PPOSettings, horizon: int = HORIZON, first_steps=FIRST_STEPS, recurrent: int = 5, **more):
    """Two updates by the product: parameters [A, P] and statistics [2, A] by name after them."""
    policy = policies(recurrent, more.get("action_size", 0))
    learner = PPO(policy, s, horizon)
    found = [
        learner.update(
            made_up_rollout(s, recurrent, seed, **more), first_steps[seed], PROGRESS[seed], np.random.default_rng(seed)
        )
        for seed in range(2)
    ]
    return policy.parameters.numpy().copy(), {
        name: torch.stack([f[name] for f in found]).numpy() for name in PPO_STATISTICS
    }


def expected(s: PPOSettings, horizon: int = HORIZON, first_steps=FIRST_STEPS, recurrent: int = 5, **more):
    """The same by the reference."""
    network = policies(recurrent, more.get("action_size", 0)).network
    parameters, found = [], []
    for row in range(A):
        agent = reference_ppo.Agent(network.arrays_of(row))
        for seed in range(2):
            arrays = made_up_rollout(s, recurrent, seed, **more).arrays()
            rollout = {name: array[row] for name, array in arrays.items()}
            order = np.random.default_rng(seed)
            found.append(reference_ppo.update(agent, rollout, s, horizon, first_steps[seed], PROGRESS[seed], order))
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
        ("normalised", lambda advantages: advantages),
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
