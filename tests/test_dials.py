"""Algorithm 1 as a whole, on a system whose returns are known: trained predictors are used, renewed, and pay."""

import bets
import numpy as np
import pytest
import torch
from conftest import run_here

from dials_mpi.analysis.reading import open_run
from dials_mpi.config import resolve
from dials_mpi.influence.dataset import agent_file, read_rounds
from dials_mpi.influence.predictor import InfluencePredictor
from dials_mpi.learning.rollout import Player
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import DomainSettings
from dials_mpi.training.evaluation import evaluate_actor, load_policy

SETTINGS = [
    "--env=bets:Bets",
    "--agents=2",
    "--steps=4800",
    "--seed=5",
    "--set=ppo.copies=8",
    "--set=ppo.rollout_length=10",
    "--set=ppo.sequence_length=1",
    "--set=ppo.minibatch_size=80",
    "--set=ppo.learning_rate=0.01",
    "--set=ppo.discount=0",
    "--set=ppo.anneal=false",
    "--set=policy.hidden_sizes=[16]",
    "--set=predictor.interval=1600",
    "--set=predictor.hidden_sizes=[16]",
    "--set=predictor.learning_rate=0.01",
    "--set=predictor.minibatch_size=100",
    "--set=predictor.epochs=40",
    "--set=dataset.steps=4000",
    "--set=dataset.copies=100",
    "--set=dataset.test_fraction=0.3",
    "--set=evaluation.interval=1600",
    "--set=evaluation.episodes=200",
    "--set=evaluation.copies=100",
]
"""Three rounds of twenty updates."""


class Watched:
    """A run, and the parameters of the AIPs that its learners' influence sources were sampled from."""

    def __init__(self, folder, *arguments):
        self.used = []
        sample = InfluencePredictor.sample

        def watched(predictor, *arguments):
            parameters = predictor.network.parameters
            if not self.used or not torch.equal(self.used[-1], parameters):
                self.used.append(parameters.clone())
            return sample(predictor, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(InfluencePredictor, "sample", watched)
            self.path = run_here(folder, *SETTINGS, *arguments)
        self.records = read_metrics(self.path)
        self.rounds = [
            list(read_rounds(file)) for i in range(2) if (file := agent_file(self.path / "influence", i)).exists()
        ]

    def phase(self, name):
        return [record for record in self.records if record["phase"] == name]

    def policy(self):
        c = resolve([("run", open_run(self.path).configuration)], 2, "bets:Bets")
        return load_policy(self.path, c, bets.Bets(2, DomainSettings()))[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("untrained"), "--mode=untrained-dials")


def probabilities(policy):
    """[2, 2, 2], π_i(a | parity)."""
    return torch.softmax(policy.step(torch.eye(2).expand(2, -1, -1), None)[0], dim=-1).double().numpy()


def test_the_bets_are_a_domain_like_any_other():
    check_domain(bets.Bets(2, DomainSettings()))


def test_trained_predictors_teach_the_right_policies_and_untrained_ones_the_wrong(trained, untrained):
    right = np.array([[[0.0, 1.0], [1.0, 0.0]]] * 2)
    assert bets.expected_return(right) == pytest.approx([7.75, 7.75])
    assert bets.expected_return(np.array([[[1.0, 0.0]] * 2] * 2)) == pytest.approx([6.0, 6.0]), "never bets"
    for agent in range(2):
        assert trained.phase("evaluate")[-1]["per_agent"]["mean_return"][agent] > 7.3
        assert untrained.phase("evaluate")[-1]["per_agent"]["mean_return"][agent] < 6.3


def test_learners_are_influenced_by_the_predictors_of_each_round_and_by_no_others(trained, untrained):
    assert len(trained.rounds[0]) == len(trained.used) == 3
    for round_, used in enumerate(trained.used):
        for agent in range(2):
            assert np.array_equal(used[agent], trained.rounds[agent][round_].predictor)
    assert len(untrained.used) == 1, "never trained"
    c = resolve([("run", open_run(untrained.path).configuration)], 2, "bets:Bets")
    first = InfluencePredictor(range(2), bets.Bets.influence, c.predictor, c.seed).network.parameters
    assert torch.equal(untrained.used[0], first)


def test_every_round_learns_the_influence_of_the_policies_as_they_are_then(trained):
    records = trained.phase("aip")
    assert [(record["round"], record["step"]) for record in records] == [(0, 0), (1, 1600), (2, 3200)]
    for agent, rounds in enumerate(trained.rounds):
        for round_, data in enumerate(rounds):
            parity = np.arange(bets.HORIZON) % 2
            assert np.array_equal(data.history[..., 1], np.broadcast_to(parity, data.history.shape[:2]))
            others = trained.rounds[1 - agent][round_].actions
            exact = bets.CHANCE[parity, others].reshape(-1, 5, 2).mean(axis=(0, 1))  # by parity
            seen = data.influence_sources[..., 0].reshape(-1, 5, 2).mean(axis=(0, 1))
            np.testing.assert_allclose(seen, exact, atol=0.05)
            predictor = InfluencePredictor.from_parameters(data.predictor[None], bets.Bets.influence, settings(trained))
            predicted = predictor.probabilities(data.history[None, :1], data.actions[None, :1])[0, 0, :2, 0, 1]
            np.testing.assert_allclose(predicted, exact, atol=0.05)
            before, after = (data.attributes[f"cross_entropy_{when}"] for when in ("before", "after"))
            held_out = -(exact * np.log(exact) + (1 - exact) * np.log(1 - exact)).mean()
            assert after == pytest.approx(held_out, abs=0.06)
            assert records[round_]["per_agent"]["cross_entropy_after"][agent] == pytest.approx(after, abs=1e-6)
            assert records[round_]["per_agent"]["cross_entropy_before"][agent] == pytest.approx(before, abs=1e-6)
            if round_ == 0:
                assert before == pytest.approx(np.log(2), abs=0.02), "it knew nothing"
        assert rounds[1].attributes["cross_entropy_before"] > rounds[1].attributes["cross_entropy_after"] + 0.02, (
            "the policies have moved, so what was learned of them is out of date"
        )


def settings(watched):
    return resolve([("run", open_run(watched.path).configuration)], 2, "bets:Bets").predictor


def test_evaluated_returns_are_those_of_the_policies(trained, untrained):
    for watched in (trained, untrained):
        record, exact = watched.phase("evaluate")[-1], bets.expected_return(probabilities(watched.policy()))
        assert record["mean_return"] == pytest.approx(exact.mean(), abs=4 * record["standard_error"])
        returns = evaluate_actor(
            bets.Bets(2, DomainSettings()), Player(watched.policy()), 5000, seed=9, step=0
        ).episodes
        error = returns.std(axis=1) / np.sqrt(returns.shape[1])
        assert (np.abs(returns.mean(axis=1) - exact) < 4 * error).all()
    first = trained.phase("evaluate")[0]
    assert first["mean_return"] == pytest.approx(bets.expected_return(np.full((2, 2, 2), 0.5)).mean(), abs=0.3)


def test_only_as_many_rounds_are_kept_as_are_asked_for(tmp_path):
    few = ["--set=predictor.epochs=1", "--set=dataset.steps=400", "--set=evaluation.episodes=2"]
    path = Watched(tmp_path, *few, "--set=dataset.keep_rounds=2").path
    for agent in range(2):
        assert [r.attributes["round"] for r in read_rounds(agent_file(path / "influence", agent))] == [1, 2]
