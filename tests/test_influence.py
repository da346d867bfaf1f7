"""AIPs and their datasets: they learn the true conditional, and files survive what may happen."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import reference_aip
import torch

from dials_mpi.config import resolve
from dials_mpi.errors import UserError
from dials_mpi.influence.augmented_simulator import InfluenceAugmentedSimulator
from dials_mpi.influence.collection import collect, dataset_batches
from dials_mpi.influence.dataset import InfluenceDataset, check_rounds, drop_rounds, read_rounds, write_round
from dials_mpi.influence.predictor import NO_ACTION, InfluencePredictor, train, train_by_epochs
from dials_mpi.influence.settings import PredictorSettings
from dials_mpi.learning.episodes import JointEpisodes
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.rollout import Player
from dials_mpi.learning.settings import PolicySettings
from dials_mpi.runs.files import replace_durably
from dials_mpi.simulators.interface import Influence
from dials_mpi.simulators.registry import make_domain
from dials_mpi.simulators.warehouse import Warehouse, WarehouseSettings
from dials_mpi.simulators.warehouse.local_simulator import WarehouseLocalSimulator
from dials_mpi.streams import streams
from dials_mpi.training.evaluation import evaluate_actor

SMALL = {"hidden_sizes": (16,), "learning_rate": 1e-2, "epochs": 60, "minibatch_size": 400}


def made_up_dataset(n_agents, influence: Influence, rule, episodes=60, horizon=20) -> InfluenceDataset:
    """Random local states and 3 actions; sources from `rule(generator, history [E, T, D])` → [E, T, U].

    A stream per agent.
    """
    data = InfluenceDataset.empty(n_agents, episodes, horizon, influence)
    for agent in range(n_agents):
        generator = np.random.default_rng(agent)
        data.history[agent] = generator.integers(2, size=data.history.shape[1:])
        data.influence_sources[agent] = rule(generator, data.history[agent])
        data.actions[agent] = generator.integers(3, size=data.actions.shape[1:])
    return data


def entropy(p) -> float:
    p = np.asarray(p)
    return float(-(p * np.log(p)).sum())


def test_feed_forward_bernoulli_predictor_finds_the_conditional():
    """P(u = 1 | x) = 0.9 if the first bit is set, else 0.2: cross-entropy falls to the conditional entropy."""
    influence = Influence(sources=2, classes=2, local_state_size=3)

    def rule(generator, history):
        chance = np.where(history[..., :1] == 1, 0.9, 0.2)
        return generator.random((*history.shape[:2], 2)) < chance

    data = made_up_dataset(2, influence, rule, episodes=400)
    predictor = InfluencePredictor(range(2), influence, PredictorSettings(**SMALL), seed=0)
    before, after = train(predictor, data, 0.2, np.random.default_rng(0))
    np.testing.assert_allclose(before, np.log(2), atol=0.01)
    exact = (entropy([0.9, 0.1]) + entropy([0.2, 0.8])) / 2
    np.testing.assert_allclose(after, exact, atol=0.02)


def test_recurrent_categorical_predictor_remembers():
    """The source is the local state of two steps ago: only a memory can tell, and then it is certain."""
    influence = Influence(sources=1, classes=3, local_state_size=2)

    def rule(generator, history):
        del generator
        earlier = np.zeros((*history.shape[:2], 1), np.uint8)
        earlier[:, 2:, 0] = history[:, :-2].sum(axis=-1)
        return earlier

    data = made_up_dataset(1, influence, rule, episodes=200)
    settings = PredictorSettings(**{**SMALL, "recurrent_size": 16, "hidden_sizes": ()})
    after = train(InfluencePredictor([0], influence, settings, 0), data, 0.1, np.random.default_rng(0))[1]
    assert after[0] < 0.1
    blind = InfluencePredictor([0], influence, PredictorSettings(**SMALL), 0)
    assert train(blind, data, 0.1, np.random.default_rng(0))[1][0] > 0.8


@pytest.mark.parametrize("sees_actions", [True, False])
@pytest.mark.parametrize("recurrent", [0, 16])
def test_what_is_learned_from_is_the_last_action_of_the_same_agent_and_episode(recurrent, sees_actions):
    """The first source is that action, and at the start the one that the episode before ended with; the second is a_t.

    Neither the action of another episode nor one that is still to come can be known.
    """
    influence = Influence(sources=2, classes=2, local_state_size=1)
    data = made_up_dataset(2, influence, lambda g, h: 0, episodes=400, horizon=4)
    data.actions[:] = data.actions == 0
    data.influence_sources[..., 0] = np.roll(data.actions.reshape(2, -1), 1, axis=1).reshape(data.actions.shape)
    data.influence_sources[..., 1] = data.actions
    settings = PredictorSettings(**SMALL, recurrent_size=recurrent, sees_actions=sees_actions)
    predictor = InfluencePredictor(range(2), influence, settings, 0, n_actions=2)
    after = train(predictor, data, 0.2, np.random.default_rng(0))[1]
    chance = entropy([1 / 3, 2 / 3])
    known = 3 / 4 / 2 if sees_actions else 0  # of the first source all but the first of four steps
    np.testing.assert_allclose(after, (1 - known) * chance, atol=0.02)


@pytest.mark.parametrize("sees_actions", [False, True])
@pytest.mark.parametrize("recurrent", [0, 16])
def test_training_in_a_block_equals_training_alone(recurrent, sees_actions):
    """Early stopping included: agents of one block stop at different epochs."""
    influence = Influence(sources=2, classes=4, local_state_size=5)

    def rule(generator, history):
        return np.minimum(history[..., :2] + (generator.random((*history.shape[:2], 2)) < 0.3), 3)

    data = made_up_dataset(4, influence, rule)
    settings = PredictorSettings(**SMALL, recurrent_size=recurrent, patience=2, sees_actions=sees_actions)
    block = InfluencePredictor(range(4), influence, settings, seed=3, n_actions=3)
    losses = train(block, data, 0.1, np.random.default_rng(0))
    for agent in range(4):
        alone = InfluencePredictor([agent], influence, settings, seed=3, n_actions=3)
        mine = InfluenceDataset(**{name: array[agent : agent + 1] for name, array in data.arrays().items()})
        result = train(alone, mine, 0.1, np.random.default_rng(0))
        assert torch.equal(alone.network.parameters[0], block.network.parameters[agent])
        assert [loss[0] for loss in result] == [loss[agent] for loss in losses]


@pytest.mark.parametrize(
    ("recurrent", "classes", "sources", "minibatch", "fraction", "held_out"),
    [
        (0, 2, 2, 30, 0.25, 2),
        (0, 2, 1, 7, 0.1, 1),
        (5, 3, 2, 20, 0.3, 2),
        (5, 2, 3, 3, 0.99, 6),
        (5, 2, 1, 5, 0.3, 2),
        (0, 3, 1, 1600, 0.5, 3),
    ],
)
def test_training_equals_the_reference(recurrent, classes, sources, minibatch, fraction, held_out):
    """Seven episodes of six steps; the second agent's sources can be learned, the others' are noise and overfitted."""
    influence = Influence(sources, classes, 4)

    def rule(generator, history):
        noise = generator.integers(classes, size=(*history.shape[:2], sources))
        return noise if learnable.pop(0) else history[..., :1].repeat(sources, axis=-1)

    learnable = [True, False, True]
    data = made_up_dataset(3, influence, rule, episodes=7, horizon=6)
    s = PredictorSettings(
        recurrent_size=recurrent, hidden_sizes=(5,), learning_rate=0.01, epochs=25, minibatch_size=minibatch, patience=3
    )
    predictor = InfluencePredictor(range(3), influence, s, seed=1)
    twins = [reference_aip.Agent(predictor.network.arrays_of(row)) for row in range(3)]
    epochs, pauses = train_by_epochs(predictor, data, fraction, np.random.default_rng(2)), 0
    while True:
        try:
            next(epochs)
            pauses += 1
        except StopIteration as end:
            before, after = end.value
            break
    went_on = []
    for row, twin in enumerate(twins):
        arrays = data.history[row], data.influence_sources[row]
        weights, best, first, more = reference_aip.train(twin, *arrays, classes, s, held_out, np.random.default_rng(2))
        assert (before[row], after[row]) == pytest.approx((first, best), abs=1e-6)
        flat = torch.cat([w.ravel() for w in weights.values()])
        torch.testing.assert_close(predictor.network.parameters[row].double(), flat, atol=1e-5, rtol=0)
        went_on.append(more)
    assert pauses == max(went_on), "until the last agent has stopped"
    assert min(went_on) < max(went_on)


@pytest.mark.parametrize(("sources", "classes"), [(2, 2), (1, 2), (3, 4)])
def test_a_predictor_that_knows_nothing_yet_learns_the_right_way(sources, classes):
    """All logits are 0, as of a new one on empty roads: a class's gradient is its predicted less its true share."""
    influence = Influence(sources, classes, local_state_size=3)
    predictor = InfluencePredictor([0], influence, PredictorSettings(hidden_sizes=(5,)), seed=None)
    seen = torch.tensor([[0], [1], [1], [1]]).expand(4, sources)  # three in four are of class 1
    samples = torch.zeros(1, 1, 4, 3), torch.zeros(1, 1, 4, dtype=torch.int16), seen[None, None]
    loss = predictor.cross_entropy(*samples)
    assert loss.item() == pytest.approx(np.log(classes))
    predictor.network.backward(loss.sum())
    biases = predictor.network.gradients[0, -predictor.network.shapes["layer1.bias"][1] :].numpy()
    if predictor.bernoulli:
        expected = np.full(sources, 1 / 2 - 3 / 4)
    else:
        expected = np.tile([1 / classes - 1 / 4, 1 / classes - 3 / 4, *[1 / classes] * (classes - 2)], sources)
    np.testing.assert_allclose(biases, expected / sources, atol=1e-6)


def test_an_epoch_that_is_as_good_is_none_that_is_better():
    """With steps too small for float32 nothing changes, and training is over after `patience` epochs."""
    influence = Influence(sources=1, classes=2, local_state_size=4)
    data = made_up_dataset(2, influence, lambda g, h: g.random((*h.shape[:2], 1)) < 0.5, episodes=5)
    settings = PredictorSettings(hidden_sizes=(5,), learning_rate=1e-30, epochs=50, patience=4)
    predictor = InfluencePredictor(range(2), influence, settings, 0)
    assert len(list(train_by_epochs(predictor, data, 0.2, np.random.default_rng(0)))) == 3


def test_a_dataset_of_one_episode_leaves_nothing_to_hold_out():
    influence = Influence(sources=1, classes=2, local_state_size=4)
    data = made_up_dataset(1, influence, lambda g, h: g.random((*h.shape[:2], 1)) < 0.5, episodes=1)
    with pytest.raises(ValueError, match="needs two episodes at least"):
        train(InfluencePredictor([0], influence, PredictorSettings(), 0), data, 0.2, np.random.default_rng(0))


def test_of_two_episodes_one_is_held_out_however_small_the_share():
    influence = Influence(sources=1, classes=2, local_state_size=4)
    data = made_up_dataset(1, influence, lambda g, h: h[..., :1], episodes=2)
    predictor = InfluencePredictor([0], influence, PredictorSettings(**SMALL), 0)
    twin = reference_aip.Agent(predictor.network.arrays_of(0))
    before, _ = train(predictor, data, 0.01, np.random.default_rng(0))
    held_out = [
        torch.tensor(x[0, 1:], dtype=kind)
        for x, kind in ((data.history, torch.float64), (data.influence_sources, torch.int64))
    ]
    assert before[0] == pytest.approx(reference_aip.cross_entropy(twin, *held_out, 2, 0).item(), abs=1e-6)


def test_a_predictor_that_sees_actions_needs_their_number():
    settings = PredictorSettings(sees_actions=True)
    with pytest.raises(ValueError, match="needs their number"):
        InfluencePredictor([0], Influence(1, 2, 4), settings, 0)
    assert InfluencePredictor([0], Influence(1, 2, 4), settings, 0, n_actions=1).network.n_agents == 1


def test_training_never_makes_a_predictor_worse_on_held_out_episodes():
    influence = Influence(sources=1, classes=2, local_state_size=4)
    data = made_up_dataset(3, influence, lambda g, h: g.random((*h.shape[:2], 1)) < 0.5, episodes=10)
    settings = PredictorSettings(**{**SMALL, "learning_rate": 0.1})
    before, after = train(InfluencePredictor(range(3), influence, settings, 0), data, 0.2, np.random.default_rng(0))
    assert (after <= before).all()


@pytest.mark.parametrize(
    ("classes", "sources", "biases", "expected"),
    [
        (3, 1, [1.0, 0.0, -1.0], [[0.665, 0.245, 0.090]]),
        (2, 1, [1.0, 0.0], [[0.731, 0.269]]),
        (2, 2, [1.0, -1.0], [[0.269, 0.731], [0.731, 0.269]]),  # Bernoulli: the logit of class 1
    ],
)
def test_sampled_sources_follow_the_prediction(classes, sources, biases, expected):
    influence = Influence(sources=sources, classes=classes, local_state_size=2)
    predictor = InfluencePredictor([0], influence, PredictorSettings(hidden_sizes=()), 0)
    predictor.network.parameters[0, -len(biases) :] = torch.tensor(biases)
    noise = predictor.noise(streams(0, "train/influence", [0]), 20000)
    first = np.zeros((1, 20000, 2), np.uint8), np.full((1, 20000), NO_ACTION)
    sampled, _ = predictor.sample(*first, None, noise)
    assert sampled.dtype == np.uint8
    shares = [np.bincount(sampled[0, :, u], minlength=classes) / 20000 for u in range(sources)]
    np.testing.assert_allclose(shares, expected, atol=0.015)
    told = predictor.probabilities(np.zeros((1, 3, 5, 2), np.uint8), np.zeros((1, 3, 5), np.uint8))
    np.testing.assert_allclose(told, np.broadcast_to(expected, (1, 3, 5, sources, classes)), atol=0.001)


def test_augmented_simulator_closes_what_it_was_given():
    class Noted(WarehouseLocalSimulator):
        closed = False

        def close(self):
            self.closed = True

    simulator = Noted(1, 0.02, copies=1)
    predictor = InfluencePredictor([0], Warehouse.influence, PredictorSettings(), 0)
    InfluenceAugmentedSimulator(simulator, predictor, 1).close()
    assert simulator.closed


def test_augmented_simulator_wipes_the_predictors_memory_between_episodes():
    domain = Warehouse(4, WarehouseSettings())
    settings = PredictorSettings(recurrent_size=8, hidden_sizes=())
    predictor = InfluencePredictor([1, 2], domain.influence, settings, 0)
    simulator = InfluenceAugmentedSimulator(domain.local_simulator([1, 2], 3), predictor, 3)
    seen = []
    step = predictor.network.step
    predictor.network.step = lambda x, state: (seen.append(state.abs().max().item()), step(x, state))[1]
    simulator.seed(streams(0, "train/simulator", [1, 2]), streams(0, "train/influence", [1, 2]))
    for _ in range(2):
        simulator.reset()
        for _ in range(3):
            simulator.step(np.zeros((2, 3), np.int64))
    assert [value == 0 for value in seen] == [True, False, False, True, False, False]


@pytest.mark.parametrize("recurrent", [0, 8])
def test_augmented_simulator_shows_each_copy_its_last_action_of_this_episode(recurrent):
    """And the same is seen in whole episodes afterwards."""
    domain = Warehouse(4, WarehouseSettings())
    settings = PredictorSettings(recurrent_size=recurrent, hidden_sizes=(), sees_actions=True)
    predictor = InfluencePredictor([1, 2], domain.influence, settings, 0, n_actions=domain.n_actions)
    local_simulator = domain.local_simulator([1, 2], 3)
    simulator = InfluenceAugmentedSimulator(local_simulator, predictor, 3)
    simulator.seed(streams(0, "train/simulator", [1, 2]), streams(0, "train/influence", [1, 2]))
    seen, logits, network_step = [], [], predictor.network.step

    def step(features, state):
        outputs = network_step(features, state)
        seen.append(features.numpy())
        logits.append(outputs[0])
        return outputs

    predictor.network.step = step
    generator, actions = np.random.default_rng(0), np.zeros((2, 3), np.int64)  # an array that is used again
    for _ in range(2):
        simulator.reset()
        last, history, all_actions = np.zeros((2, 3, 4)), [], []
        for _ in range(4):
            history.append(local_simulator.local_states().copy())
            actions[:] = generator.integers(4, size=(2, 3))
            simulator.step(actions)
            np.testing.assert_array_equal(seen[-1], np.concatenate([history[-1], last], axis=-1))
            last = np.eye(4)[actions]
            all_actions.append(actions.astype(np.uint8))
        predicted = predictor.probabilities(np.stack(history, axis=2), np.stack(all_actions, axis=2))
        stepwise = torch.stack(logits[-4:], dim=2).view(predicted.shape).softmax(dim=-1)
        np.testing.assert_allclose(predicted, stepwise, atol=1e-6)


def test_a_predictor_that_sees_actions_comes_back_from_its_parameters_and_their_number():
    influence, settings = Influence(2, 4, 5), PredictorSettings(sees_actions=True)
    data = made_up_dataset(2, influence, lambda g, h: 0)
    predictor = InfluencePredictor(range(2), influence, settings, 0, n_actions=3)
    parameters = predictor.network.parameters.numpy()
    again = InfluencePredictor.from_parameters(parameters, influence, settings, n_actions=3)
    arrays = data.history, data.actions
    np.testing.assert_array_equal(again.probabilities(*arrays), predictor.probabilities(*arrays))
    with pytest.raises(ValueError, match="a predictor that sees actions needs their number"):
        InfluencePredictor.from_parameters(parameters, influence, settings)
    with pytest.raises(ValueError, match="parameters of shape"):
        InfluencePredictor.from_parameters(parameters, influence, settings, n_actions=4)


def test_collected_rows_pair_the_state_before_a_step_with_the_sources_of_that_step():
    """Replayed in the LS, a dataset's sources and actions lead from each of its local states to the next."""
    domain = Warehouse(4, WarehouseSettings(item_probability=0.0))
    policy = Policy(range(4), 37, 4, PolicySettings(hidden_sizes=(8,)), seed=0)
    data, _ = collect(JointEpisodes(domain, Player(policy), seed=0, step=0), 0, range(3))
    ls = domain.local_simulator(range(4), 3)
    ls.seed(streams(0, "train/simulator", range(4)))
    ls.reset()
    for t in range(domain.horizon):
        assert np.array_equal(ls.local_states(), data.history[:, :, t])
        ls.step(data.actions[:, :, t], data.influence_sources[:, :, t])
    assert (data.influence_sources < 3).any(), "somebody stood on a shared shelf"


@pytest.mark.parametrize(
    ("steps", "copies", "expected"), [(1000, 4, [4, 4, 2]), (1000, 50, [10]), (950, 5, [5, 5]), (1, 3, [1])]
)
def test_dataset_size_is_rounded_up_to_whole_episodes(steps, copies, expected):
    batches = dataset_batches(steps, copies, horizon=100)
    assert [len(batch) for batch in batches] == expected
    assert [episode for batch in batches for episode in batch] == list(range(sum(expected)))


@pytest.mark.parametrize("env", ["warehouse", "traffic", "ring:Ring"])
def test_a_batch_does_not_depend_on_who_collects_it_and_in_which_order(env):
    c = resolve([("test", {"env": env})], 4, env)
    domain = make_domain(env, 4, c.domain)
    domain.horizon = 20
    policy = Policy(range(4), domain.observation_size, domain.n_actions, c.policy, seed=0)
    batches = dataset_batches(100, 2, domain.horizon)

    def collected(order):
        with JointEpisodes(domain, Player(policy), seed=1, step=400) as episodes:
            played = {number: collect(episodes, number, batches[number]) for number in order}
            return {number: (data, outcomes.returns) for number, (data, outcomes) in played.items()}

    whole, backwards = collected([0, 1, 2]), collected([2, 1, 0])
    for number in whole:
        (data, returns), (again, same_returns) = whole[number], collected([number])[number]
        for other, other_returns in ((again, same_returns), backwards[number]):
            assert np.array_equal(returns, other_returns)
            for name, array in data.arrays().items():
                assert np.array_equal(array, other.arrays()[name]), name
    assert not np.array_equal(whole[0][0].actions, whole[1][0].actions)
    evaluation = evaluate_actor(domain, Player(policy), 5, seed=1, step=400, copies=2)
    returns = np.concatenate([returns for _, returns in whole.values()], axis=1)
    assert np.array_equal(returns, evaluation.episodes), "so they can stand for an evaluation"


@pytest.fixture
def small_dataset():
    influence = Influence(sources=2, classes=4, local_state_size=5)
    return made_up_dataset(3, influence, lambda g, h: g.integers(4, size=(*h.shape[:2], 2)), episodes=4, horizon=6)


ATTRIBUTES = {
    "domain": "made up",
    "agent": 1,
    "n_agents": 3,
    "seed": 9,
    "step": 800,
    "cross_entropy_before": np.float32(1.4),
    "cross_entropy_after": np.float32(0.5),
}


def test_hdf5_file_describes_itself_and_needs_only_h5py(tmp_path, small_dataset):
    path = tmp_path / "agent_0001.h5"
    write_round(path, small_dataset, 1, 0, ATTRIBUTES)
    with h5py.File(path) as file:
        assert dict(file.attrs) == {
            "schema": "dials_mpi influence dataset",
            "schema_version": 1,
            **{key: ATTRIBUTES[key] for key in ("domain", "agent", "n_agents", "seed")},
        }
        group = file["round_0000"]
        assert group.attrs["step"] == 800
        assert group.attrs["round"] == 0
        assert group.attrs["cross_entropy_after"] == np.float32(0.5)
        assert group["history"].attrs["axes"] == "step, local state bit"
        assert group["history"].compression == "gzip"
        assert np.array_equal(group["history"], small_dataset.history[1].reshape(24, 5))
        assert np.array_equal(group["influence_sources"], small_dataset.influence_sources[1].reshape(24, 2))
        assert np.array_equal(group["actions"], small_dataset.actions[1].ravel())
        assert group["episode_starts"][:].tolist() == [0, 6, 12, 18]


@pytest.mark.parametrize(("keep", "expected"), [(0, [0, 1, 2, 3]), (1, [3]), (2, [2, 3]), (9, [0, 1, 2, 3])])
def test_old_rounds_are_kept_or_pruned(tmp_path, small_dataset, keep, expected):
    path = tmp_path / "agent.h5"
    for round_ in range(4):
        write_round(path, small_dataset, 0, round_, ATTRIBUTES, keep=keep)
    with h5py.File(path) as file:
        assert list(file) == [f"round_{round_:04d}" for round_ in expected]


def test_a_process_killed_while_writing_leaves_the_old_file_whole(tmp_path, small_dataset):
    path = tmp_path / "agent.h5"
    write_round(path, small_dataset, 0, 0, ATTRIBUTES)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        written = h5py.Group.create_dataset

        def killed_at_the_second(group, name, *arguments, **options):
            if name == "influence_sources":
                group.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return written(group, name, *arguments, **options)

        h5py.Group.create_dataset = killed_at_the_second
        write_round(path, small_dataset, 0, 1, ATTRIBUTES)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.with_suffix(".h5.tmp").exists(), "it was in the middle of writing"
    assert path.read_bytes() == before
    write_round(path, small_dataset, 0, 1, ATTRIBUTES)
    with h5py.File(path) as file:
        assert list(file) == ["round_0000", "round_0001"]
    assert [file.name for file in tmp_path.iterdir()] == ["agent.h5"]


def test_files_are_on_disk_before_they_are_renamed_and_the_rename_is_then(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor):
        order.append("fsync " + Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def spy_replace(self, target):
        order.append(f"replace {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    (tmp_path / "x.tmp").write_text("new")
    replace_durably(tmp_path / "x.tmp", tmp_path / "x")
    assert order == ["fsync x.tmp", "replace x.tmp x", f"fsync {tmp_path.name}"]


def test_writing_a_round_again_replaces_it(tmp_path, small_dataset):
    path = tmp_path / "agent.h5"
    write_round(path, small_dataset, 0, 0, ATTRIBUTES)
    write_round(path, small_dataset, 2, 0, ATTRIBUTES)
    with h5py.File(path) as file:
        assert np.array_equal(file["round_0000/history"], small_dataset.history[2].reshape(24, 5))


def test_every_flipped_bit_is_recognised_or_harmless(tmp_path, small_dataset):
    path = tmp_path / "agent.h5"
    write_round(path, small_dataset, 0, 0, ATTRIBUTES)
    whole = path.read_bytes()
    content = _content(path)
    recognised = 0
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            check_rounds(path, 1)
        except UserError as error:
            recognised += str(error).startswith(f"{path}: damaged")
        else:
            assert _content(path) == content
    assert recognised > 0


def _content(path):
    """All numbers of a file; HDF5 has no checksums for texts."""

    def numbers(item):
        return {key: value.item() for key, value in item.attrs.items() if not isinstance(value, str)}

    with h5py.File(path) as file:
        fields = {name: {key: field[()].tobytes() for key, field in group.items()} for name, group in file.items()}
        return numbers(file), {name: numbers(group) for name, group in file.items()}, fields


def test_what_is_written_is_read_back(tmp_path, small_dataset):
    path = tmp_path / "agent.h5"
    predictor = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    for round_ in range(2):
        write_round(path, small_dataset, 1, round_, ATTRIBUTES | {"horizon": 6}, predictor if round_ else None)
    first, second = read_rounds(path)
    for read in (first, second):
        for field, array in small_dataset.arrays().items():
            assert np.array_equal(getattr(read, field), array[1])
    assert [read.attributes["round"] for read in (first, second)] == [0, 1]
    assert first.predictor is None
    assert np.array_equal(second.predictor, predictor)


def test_a_foreign_file_is_named(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = [1, 2, 3]
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    with pytest.raises(UserError, match=r"foreign\.h5: no influence dataset"):
        list(read_rounds(tmp_path / "foreign.h5"))
    with pytest.raises(UserError, match=r"text\.h5: damaged, or no influence dataset"):
        list(read_rounds(tmp_path / "text.h5"))


def test_a_damaged_file_to_be_added_to_is_named_and_stays(tmp_path, small_dataset):
    path = tmp_path / "agent_0002.h5"
    write_round(path, small_dataset, 0, 0, ATTRIBUTES)
    whole = path.read_bytes()
    for damaged in (b"no HDF5", whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"agent_0002\.h5: damaged \(.*\); move it away"):
            write_round(path, small_dataset, 0, 1, ATTRIBUTES)
        assert path.read_bytes() == damaged


def test_dropping_all_rounds_needs_no_whole_file(tmp_path):
    path = tmp_path / "agent_0002.h5"
    path.write_bytes(b"no HDF5")
    drop_rounds(path, 0)
    assert not path.exists()
    drop_rounds(path, 0)


def test_dropping_rounds_leaves_the_memory_of_the_process_whole(tmp_path, small_dataset):
    """HDF5 may write where it must not when it copies what it has just read; the allocator then notices."""
    script = f"""
from pathlib import Path
import shutil
from dials_mpi.influence.dataset import check_rounds, drop_rounds
path = Path({str(tmp_path / "agent.h5")!r})
for _ in range(20):
    shutil.copy(path.with_name("whole.h5"), path)
    check_rounds(path, 2)
    drop_rounds(path, 2)
"""
    for round_ in range(3):
        predictor = np.random.default_rng(round_).normal(size=20000).astype(np.float32)
        write_round(tmp_path / "whole.h5", small_dataset, 0, round_, ATTRIBUTES, predictor)
    checked = {
        **os.environ,
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "77",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    result = subprocess.run([sys.executable, "-c", script], env=checked, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
