"""What agents may do: actions that are not always available, continuous ones, and agents of different kinds."""

import json
import warnings

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
from aim import Aim, AimGlobalSimulator, AimLocalSimulator, target
from conftest import tool
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from menu import DELICACY, Menu, MenuGlobalSimulator, MenuLocalSimulator, Mixed
from pettingzoo.test import parallel_api_test, parallel_seed_test
from test_command_line import one_line

from dials_mpi.environments import GlobalEnvironment, LocalEnvironment
from dials_mpi.errors import UserError
from dials_mpi.influence.dataset import read_rounds
from dials_mpi.learning.distributions import Categorical, Continuous, Discrete, Gaussian, actions_of
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Player, Rollout
from dials_mpi.learning.settings import PolicySettings, PPOSettings
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.simulators.actions import random_actions
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import DomainSettings
from dials_mpi.simulators.registry import make_domain
from dials_mpi.streams import stream, streams
from dials_mpi.training.evaluation import evaluate_actor, evaluate_controller

SETTINGS = PPOSettings(
    copies=6, rollout_length=20, sequence_length=1, minibatch_size=60, learning_rate=1e-2, anneal=True
)
RUN = [
    "--agents=3", "--steps=800", "--set=ppo.copies=4", "--set=ppo.rollout_length=20", "--set=ppo.sequence_length=1",
    "--set=ppo.minibatch_size=40", "--set=evaluation.interval=400", "--set=evaluation.episodes=3",
]  # fmt: skip
DIALS = ["--set=dataset.steps=200", "--set=predictor.interval=400", "--set=predictor.epochs=2"]


def learning(domain, updates, settings=SETTINGS, policy_settings=None):
    """Rollouts of the GS before anything is learned and at the end, and the policies then."""
    policy_settings = policy_settings or PolicySettings(hidden_sizes=(16,))
    policy = Policy(range(domain.n_agents), domain.observation_size, actions_of(domain), policy_settings, 0)
    simulator = domain.global_simulator(settings.copies)
    simulator.seed(streams(0, "train/simulator", range(settings.copies)))
    actor = Actor(policy, simulator, settings.copies, domain, Clock())
    actor.start(streams(0, "train/actions", range(domain.n_agents)))
    learner = PPO(policy, settings, domain.horizon)
    first, rollout = (Rollout.of_domain(domain, domain.n_agents, settings, 0) for _ in range(2))
    actor.collect(first, settings.sequence_length)
    actor.collect(rollout, settings.sequence_length)
    for update in range(updates):
        learner.update(rollout, 0, update / updates, stream(0, "train/minibatches", round_=update))
        actor.collect(rollout, settings.sequence_length)
    return first, rollout, policy


def test_of_the_available_actions_samples_follow_the_policy_and_the_others_have_no_probability():
    logits = torch.tensor([[1.0, 0.0, 9.0, -1.0]]).expand(1, 20000, 4)
    available = torch.tensor([True, True, False, True]).expand_as(logits)
    distribution = Categorical(logits, available)
    sampled = distribution.sample(Discrete(4).noise(streams(0, "train/actions", [0]), 20000))[0]
    expected = torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0)
    share = torch.bincount(sampled, minlength=4) / 20000
    assert share[2] == 0
    torch.testing.assert_close(share[[0, 1, 3]], expected, atol=0.015, rtol=0)
    torch.testing.assert_close(distribution.log_probability(sampled[None])[0].exp(), expected[[0, 1, -1, 2]][sampled])
    torch.testing.assert_close(distribution.entropy()[0, 0], -(expected * expected.log()).sum())


def test_an_agent_with_one_action_takes_it_and_learns_nothing_of_it():
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    only = torch.zeros(2, 5, 3, dtype=torch.bool).scatter_(-1, torch.tensor([[[1]], [[2]]]).expand(2, 5, 1), True)
    distribution = Categorical(logits, only)
    actions = distribution.sample(Discrete(3).noise(streams(0, "train/actions", [0, 1]), 5))
    assert actions.tolist() == [[1] * 5, [2] * 5]
    (distribution.log_probability(actions) + distribution.entropy()).sum().backward()
    assert not distribution.entropy().any()
    assert not distribution.log_probability(actions).any()
    assert not logits.grad.any(), "and no NaN"


def test_what_pays_more_is_taken_where_it_is_available_and_never_where_it_is_not():
    """The simulator fails if it is; where it is not, the policy learns what is best among the rest."""
    first, last, _ = learning(Menu(3, DomainSettings()), 100)
    bits = first.observations[..., 0] == 1
    assert torch.equal(first.available[..., 2], bits)
    assert first.available[..., :2].all()
    assert (first.actions[bits] == 2).float().mean() == pytest.approx(1 / 3, abs=0.15)
    bits = last.observations[..., 0] == 1
    assert (last.actions[bits] == 2).float().mean() > 0.95
    assert not (last.actions[~bits] == 2).any()
    assert last.rewards.mean() > 0.9 * DELICACY


def test_log_probabilities_are_of_the_available_actions():
    rollout, _, policy = learning(Menu(2, DomainSettings()), 0)
    logits, _ = policy.unroll(rollout.observations, None, None)
    for row, available, action, found in zip(
        logits.reshape(-1, 3), rollout.available.reshape(-1, 3), rollout.actions.ravel(),
        rollout.log_probabilities.ravel(), strict=True,
    ):  # fmt: skip
        weights = (row.exp() * available).double()
        assert found.exp().item() == pytest.approx((weights[action] / weights.sum()).item(), abs=1e-5)


def test_everybody_who_plays_keeps_to_what_is_available():
    """The simulators see to it. Played are the checks, random and hand-coded controllers, and policies."""
    domain = Menu(3, DomainSettings())
    check_domain(domain)
    for controller in (None, "copy"):
        assert evaluate_controller(domain, controller, 20, seed=0).mean_return > 3
    policy = Policy(range(3), 2, 3, PolicySettings(hidden_sizes=(4,), initial_logits=(0, 0, 9)), 0)
    returns = evaluate_actor(domain, Player(policy), 20, seed=0, step=0)
    # Who may always does, whose left neighbour does not go hungry; the others choose 0 or 1.
    assert returns.mean_return > 6 * DELICACY


def test_random_actions_are_uniform_over_the_available_ones():
    available = np.tile([[True, False, True, True]], (30000, 1))
    actions = random_actions(Menu(3, DomainSettings()), np.random.default_rng(0), (30000,), available)
    shares = np.bincount(actions, minlength=4) / 30000
    assert shares[1] == 0
    np.testing.assert_allclose(shares[[0, 2, 3]], 1 / 3, atol=0.01)


@pytest.mark.parametrize("mode", ["dials", "gs"])
def test_masks_go_through_a_whole_run_and_the_tools(command_line, mode):
    more = DIALS if mode == "dials" else []
    result = command_line("--env=menu:Menu", f"--mode={mode}", "--name=r", *RUN, *more)
    assert result.returncode == 0, result.stderr
    assert len([r for r in read_metrics(command_line.folder / "runs" / "r") if r["phase"] == "evaluate"]) == 3
    if mode != "gs":
        return
    result = command_line("evaluate", "runs/r", "--env=menu:Menu", "--episodes=3")
    assert result.returncode == 0, result.stderr
    result = tool("export_policy.py", "runs/r", "--agent=1", "--env=menu:Menu", folder=command_line.folder,
                  PYTHONPATH=command_line.environment["PYTHONPATH"])  # fmt: skip
    assert result.returncode == 0, result.stderr
    card = json.loads((command_line.folder / "exported" / "r" / "agent_0001.json").read_text())
    assert "over the available actions" in card["action"]["choice"]
    assert "take those of unavailable ones for -infinity" in card["action"]["choice"]
    assert len(card["example"][0]["outputs"]["logits"][0]) == 3


def complaint(domain) -> str:
    with pytest.raises(UserError) as error:
        check_domain(domain)
    return str(error.value)


def changed(cls, gs, ls, **attributes):
    """A domain of three agents with other simulators and attributes."""

    class Mine(cls):
        def global_simulator(self, copies, controller=None):
            return gs(self.n_agents, copies)

        def local_simulator(self, agents, copies):
            return ls(len(agents), copies)

    domain = Mine(3, DomainSettings())
    for name, value in attributes.items():
        setattr(domain, name, value)
    return domain


def menu(gs=MenuGlobalSimulator, ls=MenuLocalSimulator, **attributes):
    return changed(Menu, gs, ls, **attributes)


def masking(kind, change):
    class Masking(kind):
        def available_actions(self):
            return change(super().available_actions())

    return Masking


def without(available):
    available[-1, -1] = False
    return available


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda available: available.astype(np.int8), "GlobalSimulator.available_actions has dtype int8, not bool"),
        (lambda available: available[..., :2], "GlobalSimulator.available_actions has shape (3, 3, 2), not (3, 3, 3)"),
        (without, "GlobalSimulator.available_actions: none at reset, agent 2, copy 2"),
    ],
)
def test_masks_are_bits_by_action_and_leave_an_action(change, message):
    assert complaint(menu(gs=masking(MenuGlobalSimulator, change))) == f"domain menu: {message}"


def test_a_domain_that_says_that_it_masks_has_simulators_that_tell():
    class Silent(MenuLocalSimulator):
        def available_actions(self):
            return super(MenuLocalSimulator.__mro__[1], self).available_actions()

    assert complaint(menu(ls=Silent)) == "Silent lacks available_actions, but its domain masks_actions"


def test_a_local_simulator_that_leaves_other_actions_than_the_global_one_is_refused():
    class Generous(MenuLocalSimulator):
        def available_actions(self):
            return np.ones((*self._shape, 3), bool)

        def _step(self, actions, sources):
            taken = np.where((actions == 2) & (self._bits == 0), 0, actions)
            return super()._step(taken, sources)

    class Enforced(Generous):
        def _step(self, actions, sources):
            self._kept = self._bits
            return super()._step(actions, sources)

    line = complaint(menu(ls=Enforced))
    assert "where the available action (entry 2) is 1 instead of 0; different are 0 of 330 local states" in line
    assert "available actions (disagreement" in line


@pytest.mark.parametrize("kind", ["gs", "ls"])
def test_an_agent_left_without_an_action_ends_the_run_with_a_line(command_line, kind):
    """From the seventh step on, and only with more copies than the checks at the start have."""
    (command_line.folder / "mute.py").write_text(
        "import menu\n"
        "class Mute:\n"
        "    def reset(self):\n"
        "        self.t = 0\n"
        "        return super().reset()\n"
        "    def step(self, *arguments):\n"
        "        step = super().step(*arguments)\n"
        "        self.t += 1\n"
        "        return step\n"
        "    def available_actions(self):\n"
        "        available = super().available_actions()\n"
        "        if self.t > 6 and self._shape == (3, 4):\n"
        "            available[1, 3] = False\n"
        "        return available\n"
        "class Gs(Mute, menu.MenuGlobalSimulator): pass\n"
        "class Ls(Mute, menu.MenuLocalSimulator): pass\n"
        "class Menu(menu.Menu):\n"
        f"    def {'global' if kind == 'gs' else 'local'}_simulator(self, agents, copies=None):\n"
        f"        return {'Gs(self.n_agents, agents)' if kind == 'gs' else 'Ls(len(agents), copies)'}\n"
    )
    mode = "gs" if kind == "gs" else "untrained-dials"
    result = command_line("--env=mute:Menu", f"--mode={mode}", "--set=evaluation.handcoded_episodes=0", *RUN)
    assert result.returncode == 1
    name = {"gs": "GlobalSimulator", "ls": "LocalSimulator"}[kind]
    assert f"domain menu: {name}.available_actions: none at step 6, agent 1, copy 3" in result.stderr


def test_environments_tell_what_is_available_and_refuse_what_is_not():
    environment = GlobalEnvironment("menu:Menu", 3)
    observations, infos = environment.reset(seed=1)
    refused = 0
    for _ in range(10):
        for agent, info in infos.items():
            mask = info["action_mask"]
            assert mask.dtype == np.int8
            assert mask.tolist() == [1, 1, int(observations[agent][0])]
            if not mask[2]:
                refused += 1
                actions = dict.fromkeys(environment.agents, 0) | {agent: 2}
                with pytest.raises(ValueError, match=f"^actions: {agent}: 2 is not available now; there is 0, 1$"):
                    environment.step(actions)
        observations, _, _, _, infos = environment.step(
            {agent: int(info["action_mask"].nonzero()[0][-1]) for agent, info in infos.items()}
        )
    assert refused
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_seed_test(lambda: GlobalEnvironment("menu:Menu", 3))


def test_a_local_environment_tells_and_refuses_as_well():
    environment = LocalEnvironment("menu:Menu", 3, influence=lambda state, generator: np.array([1 - state[0], 0]))
    observation, info = environment.reset(seed=1)
    seen = set()
    for _ in range(10):
        mask = info["action_mask"]
        assert mask.dtype == np.int8
        assert mask.tolist() == [1, 1, int(observation[0])]
        seen.add(int(mask[2]))
        if not mask[2]:
            with pytest.raises(ValueError, match=r"^action: 2 is not available now; there is 0, 1$"):
                environment.step(2)
        observation, _, _, _, info = environment.step(2 * mask[2])
    assert seen == {0, 1}
    environment = LocalEnvironment("ring:Ring", 3)
    assert environment.reset(seed=0)[1] == {}


def gaussian(mean, log_deviation):
    return Gaussian(torch.tensor(mean), torch.tensor(log_deviation).reshape(len(mean), 1, -1))


def test_continuous_samples_follow_the_policy_and_are_clipped_only_for_the_simulator():
    actions = Continuous(2, -1, 1)
    distribution = gaussian([[[0.5, -2.0]] * 20000], [[-1.0, 0.5]])
    sampled = distribution.sample(actions.noise(streams(0, "train/actions", [0]), 20000))
    torch.testing.assert_close(sampled.mean(dim=1), torch.tensor([[0.5, -2.0]]), atol=0.03, rtol=0)
    torch.testing.assert_close(sampled.std(dim=1).log(), torch.tensor([[-1.0, 0.5]]), atol=0.02, rtol=0)
    true = torch.distributions.Normal(torch.tensor([0.5, -2.0]), torch.tensor([-1.0, 0.5]).exp())
    torch.testing.assert_close(distribution.log_probability(sampled), true.log_prob(sampled).sum(-1))
    torch.testing.assert_close(distribution.entropy()[0, 0], true.entropy().sum())
    executed = actions.executed(sampled)
    assert (executed.min(), executed.max()) == (-1, 1)
    assert torch.equal(executed, sampled.clip(-1, 1))
    assert sampled.min() < -3


def test_first_policies_aim_at_the_middle_with_the_deviation_that_is_set():
    settings = PolicySettings(hidden_sizes=(16,), initial_log_deviation=-1.5)
    policy = Policy(range(3), 5, Continuous(2, 0, 10), settings, seed=0)
    observations = torch.rand(3, 50, 5, generator=torch.Generator().manual_seed(0))
    means, values, _ = policy.step(observations, None)
    assert means.shape == (3, 50, 2)
    assert values.shape == (3, 50)
    torch.testing.assert_close(means, torch.full_like(means, 5.0), atol=0.1, rtol=0)
    assert policy.parameters[:, -2:].tolist() == [[-1.5] * 2] * 3
    assert PolicySettings().initial_log_deviation == -0.5


@pytest.mark.parametrize("size", [1, 2])
def test_how_many_agents_are_stacked_changes_no_bit_of_what_deviations_learn(size):
    """With two threads: they part a sum in other places if there is more of it."""
    g = torch.Generator().manual_seed(0)
    means, actions = (torch.randn(4, 100, 800, size, generator=g) for _ in range(2))
    log_deviation = torch.randn(4, 1, size, generator=g)

    def gradient(rows):
        mine = log_deviation[rows].clone().requires_grad_()
        distribution = Gaussian(means[rows], mine)
        (distribution.log_probability(actions[rows]) + distribution.entropy()).sum().backward()
        return mine.grad

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = gradient(slice(None))
        for row in range(4):
            assert torch.equal(gradient(slice(row, row + 1))[0], whole[row])
    finally:
        torch.set_num_threads(threads)


def aim(gs=AimGlobalSimulator, ls=AimLocalSimulator, **attributes):
    return changed(Aim, gs, ls, **attributes)


def test_a_gaussian_policy_finds_the_known_optimum():
    class Shuffled(AimGlobalSimulator):  # all bits come up, whatever the neighbours have learned
        def _step(self, actions, sources):
            sources = np.stack([generator.integers(2, size=self._shape[0]) for generator in self._generators], axis=1)
            return super()._step(actions, sources)

    # What comes later does not depend on the action: with it there is only more noise.
    settings = SETTINGS.model_copy(update={"copies": 20, "minibatch_size": 100, "discount": 0.0})
    first, last, policy = learning(aim(gs=Shuffled), 60, settings)
    best = torch.from_numpy(target(last.observations[..., 0].numpy()))
    means, _ = policy.unroll(last.observations, None, None)
    assert (first.actions.abs() > 1).any(), "kept as sampled"
    assert (means - best).abs().max() < 0.05
    assert (policy.parameters[:, -2:] < -3).all(), "and is sure of it"
    assert first.rewards.mean() < 0.1
    assert last.rewards.mean() > 0.99


def test_everybody_who_plays_acts_in_the_range():
    domain = Aim(3, DomainSettings())
    check_domain(domain)
    random, expert = (evaluate_controller(domain, controller, 40, seed=0).mean_return for controller in (None, "copy"))
    assert expert == 10
    assert random == pytest.approx(10 * (1 - 1 / 3 - 0.25 - 1 / 3 - 0.0625), abs=0.5)
    policy = Policy(range(3), 2, actions_of(domain), PolicySettings(initial_log_deviation=2.0), 0)
    assert evaluate_actor(domain, Player(policy), 20, seed=0, step=0).mean_return < random
    replayed = complaint(aim(ls=type("Deaf", (AimLocalSimulator,), {"_step": lambda self, actions, sources:
                                     AimLocalSimulator._step(self, 0.5 * actions, sources)})))  # fmt: skip
    assert "where the reward is" in replayed


@pytest.mark.parametrize("mode", ["dials", "gs"])
def test_continuous_actions_go_through_a_whole_run_and_the_tools(command_line, mode):
    more = [*DIALS, "--set=policy.recurrent_size=8"] if mode == "dials" else []
    result = command_line("--env=aim:Aim", f"--mode={mode}", "--name=r", *RUN, *more)
    assert result.returncode == 0, result.stderr
    folder = command_line.folder
    if mode == "gs":
        return
    rounds = list(read_rounds(folder / "runs" / "r" / "influence" / "agent_0001.h5"))
    assert len(rounds) == 2
    actions, sources = rounds[1].actions, rounds[1].influence_sources
    assert (actions.shape, actions.dtype) == ((20, 10, 2), np.float32)
    assert abs(actions).max() == 1
    left = next(iter(read_rounds(folder / "runs" / "r" / "influence" / "agent_0000.h5"))).actions
    assert np.array_equal(left[..., 0] > 0, rounds[0].influence_sources[..., 0])
    assert set(np.unique(sources)) == {0, 1}
    with h5py.File(folder / "runs" / "r" / "influence" / "agent_0001.h5") as file:
        assert file["round_0000/actions"].attrs["axes"] == "step, component"
    environment = {"PYTHONPATH": command_line.environment["PYTHONPATH"]}
    result = tool("influence.py", "runs/r", folder=folder, **environment)
    assert result.returncode == 0, result.stderr
    result = tool("export_policy.py", "runs/r", "--agent=1", "--env=aim:Aim", "--format", "onnx", "torchscript",
                  folder=folder, **environment)  # fmt: skip
    assert result.returncode == 0, result.stderr
    exported = folder / "exported" / "r"
    card = json.loads((exported / "agent_0001.json").read_text())
    assert [output["name"] for output in card["outputs"]] == ["mean", "standard_deviation", "next_memory"]
    assert card["action"]["range"] == [-1, 1]
    assert card["action"]["names"] == ["action_0", "action_1"]
    assert "clipped to the range" in card["action"]["choice"]
    with np.load(folder / "runs" / "r" / "policies.npz") as file:
        assert file["names"][-1] == "log_deviation"
        deviations = np.exp(file["parameters"][1, -2:])
    module, session = torch.jit.load(exported / "agent_0001.pt"), onnxruntime.InferenceSession(
        exported / "agent_0001.onnx"
    )  # fmt: skip
    inputs = [np.random.default_rng(0).random((3, size), np.float32) for size in (2, 8)]
    outputs = [output.numpy() for output in module(*map(torch.from_numpy, inputs))]
    others = session.run(None, dict(zip(("observation", "memory"), inputs, strict=True)))
    for mine, other, size in zip(outputs, others, (2, 2, 8), strict=True):
        assert mine.shape == (3, size)
        np.testing.assert_allclose(mine, other, atol=1e-6)
    np.testing.assert_allclose(outputs[1], np.tile(deviations, (3, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "policy.initial_logits=[0, 1]",
            "policy.initial_logits: actions of domain aim are continuous; leave it out, or set "
            "policy.initial_log_deviation",
        ),
        (
            "predictor.sees_actions=true",
            "predictor.sees_actions: a predictor can see discrete actions only, and those of domain aim are "
            "continuous; leave it out",
        ),
    ],
)
def test_settings_of_discrete_actions_are_refused_for_continuous_ones(command_line, setting, message):
    result = command_line("--env=aim:Aim", f"--set={setting}", *RUN)
    assert result.returncode == 2
    assert one_line(result) == f"dials_mpi: {message}"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"action_size": 0}, "Mine does not set 'n_actions'; see dials_mpi/simulators/interface.py"),
        ({"n_actions": 2}, "n_actions with action_size: actions are either discrete or continuous"),
        ({"masks_actions": True}, "masks_actions with action_size: actions are either discrete or continuous"),
        ({"action_range": (1, -1)}, "action_range 1 to -1: bounds are finite, the lower one first"),
        ({"action_range": (0, np.inf)}, "action_range 0 to inf: bounds are finite, the lower one first"),
    ],
)
def test_actions_that_are_neither_discrete_nor_continuous_are_refused(monkeypatch, attributes, message):
    monkeypatch.setattr("aim.Mine", type("Mine", (Aim,), attributes), raising=False)
    with pytest.raises(UserError) as error:
        make_domain("aim:Mine", 3, DomainSettings())
    assert str(error.value) == f"env: 'aim:Mine': {message}"


def test_environments_have_boxes_of_continuous_actions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(GlobalEnvironment("aim:Aim", 3), num_cycles=30)
        environment = LocalEnvironment("aim:Aim", 3)
        check_env(environment, skip_render_check=True)
    assert environment.action_space == spaces.Box(-1, 1, (2,), np.float32)
    joint = GlobalEnvironment("aim:Aim", 3)
    joint.reset(seed=0)
    environment.reset(seed=0)
    for wrong, shown in (
        ([1.5, 0], r"\[1\.5, 0\]"), ([0.5], r"\[0\.5\]"), (0.5, "0.5"), (np.array([np.nan, 0]), r"\[nan, 0\.0\]"),
        ("ab", "'ab'"), (None, "None"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^action: {shown} is not 2 numbers from -1 to 1$"):
            environment.step(wrong)
        with pytest.raises(ValueError, match=f"^actions: agent_1: {shown} is not 2 numbers from -1 to 1$"):
            joint.step({agent: [0, 0] for agent in joint.agents} | {"agent_1": wrong})
    state = environment.unwrapped._simulator._bits[0, 0]
    assert environment.step(target(state))[1] == 1


def test_agents_of_different_kinds_learn_side_by_side():
    domain = Mixed(4, DomainSettings())
    check_domain(domain)
    first, last, _ = learning(domain, 100)
    gourmets = torch.tensor([False, True, False, True])
    assert not first.observations[~gourmets][..., 2].any()
    assert first.observations[gourmets][..., 2].any()
    assert not first.available[~gourmets][..., 2].any()
    assert not (last.actions[~gourmets] == 2).any()
    assert last.rewards[gourmets].mean() > 0.9 * DELICACY
    assert 0.9 < last.rewards[~gourmets].mean() <= 1


@pytest.mark.parametrize("kinds", [[0, 1, 0, 1], [5, 5, 5, 5], None])
def test_a_policy_is_shared_by_agents_of_one_kind_only(kinds):
    domain, shared = Mixed(4, DomainSettings()), PolicySettings(shared=True)
    domain.kinds = kinds
    PolicySettings().check(domain)
    if kinds != [0, 1, 0, 1]:
        shared.check(domain)
        return
    with pytest.raises(UserError) as error:
        shared.check(domain)
    assert str(error.value) == (
        "policy.shared: agents of domain mixed are of different kinds and cannot share a policy; leave it out"
    )


def test_every_agent_is_of_a_kind():
    domain = Mixed(3, DomainSettings())
    domain.kinds = [0, 1]
    assert complaint(domain) == "domain mixed: 2 kinds for 3 agents"


def test_kinds_go_through_a_whole_run_and_policies_do_not_change_places(command_line):
    """On two agents policies of others act than on three: 0 by 0, 1 by 2, of another kind."""
    more = [*DIALS, "--set=policy.recurrent_size=8"]
    result = command_line("--env=menu:Mixed", "--name=r", *RUN, *more)
    assert result.returncode == 0, result.stderr
    result = command_line("evaluate", "runs/r", "--env=menu:Mixed", "--episodes=2")
    assert result.returncode == 0, result.stderr
    result = command_line("evaluate", "runs/r", "--env=menu:Mixed", "--episodes=2", "--agents=2")
    assert result.returncode == 2
    assert one_line(result) == (
        "dials_mpi: mixed: agent 1 would act by the policy of the run's agent 2, which is of another kind; evaluate "
        "with the run's number of agents"
    )
    more = {"folder": command_line.folder, "PYTHONPATH": command_line.environment["PYTHONPATH"]}
    picture = ["--env=menu:Mixed", "--at=9", "--out=a.png"]
    for arguments in (["runs/r"], ["runs/r", "--simulator=ls", "--agent=1"], ["--controller=random"]):
        result = tool("render.py", *arguments, *picture, **more)
        assert result.returncode == 0, result.stderr
    result = tool("export_policy.py", "runs/r", "--agent=1", "--env=menu:Mixed", **more)
    assert result.returncode == 0, result.stderr
    card = json.loads((command_line.folder / "exported" / "r" / "agent_0001.json").read_text())
    assert card["agent"] == {"id": 1, "row": 0, "column": 1, "kind": 1}
