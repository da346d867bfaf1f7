"""What agents may do: actions that are not always available."""

import json
import warnings

import numpy as np
import pytest
import torch
from conftest import tool
from menu import DELICACY, Menu, MenuGlobalSimulator, MenuLocalSimulator
from pettingzoo.test import parallel_seed_test

from dials_mpi.environments import GlobalEnvironment, LocalEnvironment
from dials_mpi.errors import UserError
from dials_mpi.learning.distributions import Categorical
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Player, Rollout
from dials_mpi.learning.settings import PolicySettings, PPOSettings
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.simulators.actions import random_actions
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import DomainSettings
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
    policy = Policy(range(domain.n_agents), domain.observation_size, domain.n_actions, policy_settings, 0)
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
    sampled = distribution.sample(Categorical.noise(streams(0, "train/actions", [0]), 20000, 4))[0]
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
    actions = distribution.sample(Categorical.noise(streams(0, "train/actions", [0, 1]), 5, 3))
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


def menu(gs=MenuGlobalSimulator, ls=MenuLocalSimulator, **attributes):
    class Mine(Menu):
        def global_simulator(self, copies, controller=None):
            return gs(self.n_agents, copies)

        def local_simulator(self, agents, copies):
            return ls(len(agents), copies)

    domain = Mine(3, DomainSettings())
    for name, value in attributes.items():
        setattr(domain, name, value)
    return domain


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
