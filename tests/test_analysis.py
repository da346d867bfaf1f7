"""Offline analysis of influence: against numbers known by other means, and the paper's theory on an exact system."""

import math

import numpy as np
import pytest
import tabular
import torch

from dials_mpi.influence import bounds
from dials_mpi.influence.analysis import (
    autocorrelation,
    entropy,
    jensen_shannon,
    marginals,
    mutual_information,
    predictor_distance,
    total_variation,
)
from dials_mpi.influence.collection import collect, dataset_batches
from dials_mpi.influence.dataset import InfluenceDataset
from dials_mpi.influence.predictor import InfluencePredictor, train
from dials_mpi.influence.settings import PredictorSettings
from dials_mpi.learning.episodes import JointEpisodes
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.rollout import Player
from dials_mpi.learning.settings import PolicySettings
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import DomainSettings

RNG = np.random.default_rng


def test_marginals_and_their_entropy():
    sources = np.array([[[0, 1], [0, 1], [1, 1], [2, 1]]], np.uint8)
    shares = marginals(sources, 3)
    assert shares.tolist() == [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    assert entropy(shares) == pytest.approx([1.5 * math.log(2), 0.0])


def test_mutual_information_of_a_copy_a_noisy_copy_and_noise():
    history = RNG(0).integers(2, size=(50, 200, 3), dtype=np.uint8)
    flips = RNG(1).random((50, 200)) < 0.1
    sources = np.stack([history[..., 0], history[..., 1] ^ flips], axis=-1).astype(np.uint8)
    information = mutual_information(sources, history, 2)
    noisy = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    expected = [[math.log(2), 0, 0], [0, noisy, 0]]
    assert information == pytest.approx(np.array(expected), abs=0.01)


def test_mutual_information_of_independent_variables_is_not_biased():
    found = []
    for seed in range(200):
        rng = RNG(seed)
        sources = rng.integers(4, size=(1, 300, 1), dtype=np.uint8)
        history = rng.integers(2, size=(1, 300, 1), dtype=np.uint8)
        found.append(mutual_information(sources, history, 4)[0, 0])
    assert np.mean(found) < 0.5 * 3 / 600, "less than half of what counting alone would claim"


def test_autocorrelation_of_a_markov_chain():
    """A bit that stays what it is with probability 0.9 has the correlation 0.8^k after k steps."""
    stays = RNG(0).random((400, 300)) < 0.9
    chain = np.cumsum(~stays, axis=1) % 2
    result = autocorrelation(chain[..., None].astype(np.uint8), 2, 3)
    assert result == pytest.approx(np.array([[0.8, 0.64, 0.512]]), abs=0.02)
    constant = np.ones((3, 10, 1), np.uint8)
    assert autocorrelation(constant, 2, 2).tolist() == [[0, 0]]


def test_distances_of_distributions():
    one, other = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert total_variation(one, other) == pytest.approx(0.5)
    assert total_variation(one, one) == jensen_shannon(one, one) == 0
    apart = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(*apart) == pytest.approx(math.sqrt(math.log(2)))
    assert total_variation(*apart) == 1


def test_predictors_differ_by_the_distance_of_their_joint_distributions():
    one, other = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.5, 0.5]])
    assert predictor_distance(one, other) == pytest.approx(1.0)
    assert predictor_distance(one, one) == 0
    certain = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert predictor_distance(other, certain) == pytest.approx(2.0)
    many = np.full((13, 2), 0.5)  # more joint values than are listed one by one
    shifted = many + np.array([0.1, -0.1])
    assert predictor_distance(many, shifted) == pytest.approx(13 * 0.2)


@pytest.fixture(scope="module")
def domain():
    return tabular.Tabular(2, DomainSettings())


@pytest.fixture(scope="module")
def policy(domain):
    """Two agents that act by what they see, each in its own way."""
    made = Policy(range(2), domain.observation_size, 2, PolicySettings(recurrent_size=0, hidden_sizes=(16,)), 3)
    made.parameters.mul_(1.5)
    generator = torch.Generator().manual_seed(0)
    made.parameters.add_(0.5 * torch.randn(made.parameters.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def dataset(domain, policy):
    return collected(domain, policy)


def collected(domain, policy):
    batches = dataset_batches(60_000, 2000, domain.horizon)
    with JointEpisodes(domain, Player(policy), seed=1, step=0) as episodes:
        arrays = [collect(episodes, *numbered)[0].arrays() for numbered in enumerate(batches)]
    return InfluenceDataset(**{name: np.concatenate([a[name] for a in arrays], axis=1) for name in arrays[0]})


@pytest.fixture(scope="module")
def exact(domain, policy):
    """[agent][t] → P(l_t), I(u = 1 | l_t)."""
    return exact_influences(domain, policy)


def exact_influences(domain, policy):
    observations = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]).expand(2, -1, -1)
    probabilities = torch.softmax(policy.step(observations, None)[0], dim=-1).numpy()
    assert np.abs(probabilities - 0.5).max() > 0.2, "a policy that does something"
    return [tabular.exact_influence(probabilities, agent, domain.turn) for agent in range(2)]


def conditional_entropy(exact):
    """Of u given l, mean over steps, in nats: what no predictor can go below."""
    return np.mean([(p * entropy(np.stack([1 - i, i], axis=-1))).sum() for p, i in exact])


@pytest.mark.parametrize("form", [tabular.Tabular, tabular.Toggling])
def test_the_tiny_system_is_a_domain_like_any_other(form):
    check_domain(form(2, DomainSettings()))


def test_the_enumeration_agrees_with_what_is_collected(dataset, exact):
    for agent in range(2):
        for t, (p, influence) in enumerate(exact[agent]):
            assert p.sum() == pytest.approx(1)
            u = dataset.influence_sources[agent, :, t, 0]
            assert u.mean() == pytest.approx((p * influence).sum(), abs=0.02)
        x, a = dataset.history[agent, :, :, 0].astype(int), dataset.actions[agent].astype(int)
        number = 16 * x[:, 0] + 8 * a[:, 0] + 4 * x[:, 1] + 2 * a[:, 1] + x[:, 2]
        p, influence = exact[agent][2]
        counts = np.bincount(number, minlength=len(p))
        assert counts / len(x) == pytest.approx(p, abs=0.02)
        often = counts > 200
        ones = np.bincount(number, weights=dataset.influence_sources[agent, :, 2, 0], minlength=len(p))
        assert ones[often] / counts[often] == pytest.approx(influence[often], abs=0.1)


def trained(domain, dataset, recurrent=True, **settings):
    sizes = {"recurrent_size": 32, "hidden_sizes": ()} if recurrent else {"recurrent_size": 0, "hidden_sizes": (32,)}
    settings = PredictorSettings(**sizes, learning_rate=3e-3, epochs=60, minibatch_size=1000, **settings)
    predictor = InfluencePredictor(range(2), domain.influence, settings, 0, n_actions=domain.n_actions)
    train(predictor, dataset, 0.1, RNG(0))
    return predictor


def test_the_aip_converges_to_the_exact_influence(domain, dataset, exact):
    predictor, without_memory = trained(domain, dataset), trained(domain, dataset, recurrent=False)
    for agent in range(2):
        least = conditional_entropy(exact[agent])
        above = excess(domain, predictor, agent, exact)
        assert above < 0.004, f"above the exact conditional entropy of {least:.3f} nats"
        assert excess(domain, without_memory, agent, exact) > 2 * above, "history tells more"


@pytest.fixture(scope="module")
def toggling():
    """A system whose local states do not tell the action, its policies, a dataset, and what is exact."""
    domain = tabular.Toggling(2, DomainSettings())
    policy = Policy(range(2), domain.observation_size, 2, PolicySettings(recurrent_size=0, hidden_sizes=()), None)
    often = torch.tensor([[[0.8], [0.2]], [[0.75], [0.3]]])  # π_i(a = 1 | x)
    policy.network.parameters.view(2, -1, 3)[:, [1, 0], 1:2] = torch.logit(often)  # rows: observed x, not x, bias
    return domain, collected(domain, policy), exact_influences(domain, policy)


@pytest.mark.parametrize(
    ("recurrent", "sees_actions", "given"),
    [(True, True, None), (True, False, tabular.given_local_states), (False, True, tabular.given_last_step)],
    ids=["history", "local states of it", "last step of it"],
)
def test_an_aip_comes_to_what_it_sees_of_the_action_local_state_history(toggling, recurrent, sees_actions, given):
    domain, dataset, exact = toggling
    predictor = trained(domain, dataset, recurrent, sees_actions=sees_actions, patience=12)
    for agent in range(2):
        unseen = 0.0
        if given:
            unseen = conditional_entropy(given(exact[agent])) - conditional_entropy(exact[agent])
            assert unseen > 0.03, "what it does not see would tell it something"
        assert excess(domain, predictor, agent, exact) == pytest.approx(unseen, abs=0.004)


def excess(domain, predictor, agent, exact):
    """Expected cross-entropy less the conditional entropy, over all histories with their probabilities; in nats."""
    result = []
    for t, (p, influence) in enumerate(exact[agent]):
        arrays = (np.broadcast_to(array, (2, *array.shape)).copy() for array in tabular.histories(domain, t))
        predicted = predictor.probabilities(*arrays)[agent, :, -1, 0].astype(np.float64)
        truth = np.stack([1 - influence, influence], axis=-1)
        result.append((p * ((truth * (np.log(np.maximum(truth, 1e-12)) - np.log(predicted))).sum(axis=-1))).sum())
    return np.mean(result)


def random_pairs(rng, n, spread):
    """I¹ and I² of n pairs of IALMs, at most about `spread` apart, on every history."""
    sizes = [2 * 4**t for t in range(tabular.HORIZON)]
    one = [rng.random((n, size)) for size in sizes]
    other = [np.clip(i + spread * (2 * rng.random(i.shape) - 1), 0, 1) for i in one]
    distance = np.max([2 * np.abs(a - b).max(axis=1) for a, b in zip(one, other, strict=True)], axis=0)
    return one, other, distance


@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0])
def test_lemma_2_holds_on_thousands_of_pairs(spread):
    rng = RNG(4)
    closest = 0.0
    for _ in range(5):
        n = 300
        one, other, distance = random_pairs(rng, n, spread)
        turn, reward = rng.random((2, 2, 2)), 2 * rng.random((2, 2)) - 1
        policy = [rng.random(i.shape) for i in one]
        q = [tabular.values(influence, turn, reward, policy) for influence in (one, other)]
        for t in range(tabular.HORIZON):
            difference = np.abs(q[0][t] - q[1][t]).max(axis=(1, 2))
            bound = [bounds.value_difference(xi, np.abs(reward).max(), tabular.HORIZON, t) for xi in distance]
            assert (difference <= bound).all()
            closest = max(closest, (difference / bound).max())
    assert closest > 0.01, "the bound is loose, but it is no triviality"


def test_theorem_1_promises_the_same_policy_where_the_action_gap_is_wide():
    """Action 1 is worth 0.6 more at once than anything that it may change later."""
    reward, turn = np.array([[0.0, 1.0], [0.0, 1.0]]), RNG(0).random((2, 2, 2))
    one, other, distance = random_pairs(RNG(1), 200, 0.01)
    q_one, q_other = (tabular.values(influence, turn, reward) for influence in (one, other))
    gap = np.min([np.abs(q[..., 0] - q[..., 1]).min(axis=1) for q in q_one], axis=0)
    promised = [
        bounds.share_optimal_policy(g, bounds.value_difference(xi, 1.0, tabular.HORIZON))
        for g, xi in zip(gap, distance, strict=True)
    ]
    assert all(promised)
    for a, b in zip(q_one, q_other, strict=True):
        assert (a.argmax(axis=-1) == b.argmax(axis=-1)).all()
    for g, xi in zip(gap, distance, strict=True):
        assert xi < bounds.distance_to_promise(g, 1.0, tabular.HORIZON)


def test_theorem_1_promises_nothing_where_the_policies_differ():
    """Action 1 copies the influence source into the bit that is paid for; action 0 tosses a coin."""
    reward = np.array([[0.0, 0.0], [1.0, 1.0]])
    turn = np.array([[[0.5, 0.0], [0.5, 1.0]]] * 2)  # P[x, u, a]
    often = [np.full((1, 2 * 4**t), 0.9) for t in range(tabular.HORIZON)]
    seldom = [1 - i for i in often]
    q_often, q_seldom = (tabular.values(influence, turn, reward) for influence in (often, seldom))
    assert q_often[0][0, 0].argmax() == 1
    assert q_seldom[0][0, 0].argmax() == 0
    gap = np.abs(q_often[0][..., 0] - q_often[0][..., 1]).min()
    assert not bounds.share_optimal_policy(gap, bounds.value_difference(1.6, 1.0, tabular.HORIZON))


def test_the_bound_grows_with_what_is_left_of_the_episode():
    assert bounds.value_difference(0.5, 2.0, 100) == 2.0 * 100 * 101 / 2 * 0.5
    assert bounds.value_difference(0.5, 2.0, 100, step=99) == 2.0 * 0.5
    assert bounds.trivial_difference(2.0, 100, step=90) == 20.0
    assert bounds.distance_to_promise(1.0, 1.0, 100) == pytest.approx(1 / (100 * 101))
