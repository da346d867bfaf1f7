"""PettingZoo and Gymnasium adapters, checked by these libraries' own tests; and pictures."""

import warnings

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_api_test, parallel_seed_test

from dials_mpi.environments import GlobalEnvironment, LocalEnvironment
from dials_mpi.errors import UserError

WORLDS = {"warehouse": {}, "traffic": {"backend": "traci", "horizon": 60}}


@pytest.mark.parametrize("env", WORLDS)
def test_global_simulators_are_parallel_environments(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment = GlobalEnvironment(env, 4, WORLDS[env])
        parallel_api_test(environment, num_cycles=150)
        environment.close()
    made = []

    def make():
        made.append(GlobalEnvironment(env, 4, WORLDS[env]))
        return made[-1]

    parallel_seed_test(make)
    for environment in made:
        environment.close()


@pytest.mark.parametrize("env", WORLDS)
def test_local_simulators_are_gymnasium_environments(env):
    environment = LocalEnvironment(env, 4, agent=2, settings=WORLDS[env])
    check_env(environment, skip_render_check=True)
    environment.close()


def test_one_traffic_environment_runs_in_process():
    environment = GlobalEnvironment("traffic", 4)
    parallel_api_test(environment, num_cycles=20)
    environment.close()


def test_an_episode_is_truncated_at_the_horizon_and_seeds_repeat_it():
    environment = LocalEnvironment("warehouse", 4, influence=lambda state, generator: np.array([3, 3, 3, state[12]]))

    def episode(seed):
        environment.reset(seed=seed)
        return [environment.step(t % 4) for t in range(100)]

    first, again, other = episode(1), episode(1), episode(2)
    assert [step[3] for step in first] == [False] * 99 + [True]
    assert not any(step[2] for step in first)
    assert first[0][4]["influence_sources"].tolist() == [3, 3, 3, 1], "the robot starts at the centre"
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="5 agents make no m×m grid"):
        GlobalEnvironment("warehouse", 5)
    with pytest.raises(UserError, match="agent: 4 is none of 0 to 3"):
        LocalEnvironment("warehouse", 4, agent=4)
    with pytest.raises(UserError, match=r"domain\.horizn: unknown key \(the caller\); did you mean domain\.horizon"):
        GlobalEnvironment("warehouse", 4, {"horizn": 5})


@pytest.mark.parametrize("env", WORLDS)
@pytest.mark.parametrize("kind", [GlobalEnvironment, LocalEnvironment])
def test_environments_can_be_seen(env, kind):
    environment = kind(env, 4, settings=WORLDS[env], render_mode="rgb_array")
    environment.reset(seed=0)
    picture = environment.render()
    environment.close()
    assert picture.shape == (500, 600, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_an_influence_that_makes_no_sense_is_refused():
    environment = LocalEnvironment("warehouse", 4, influence=lambda state, generator: np.array([0, 1, 2, -1]))
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[0, 1, 2, -1\] are not 4 sources with classes 0 to 3"):
        environment.step(0)


def test_an_influence_with_a_memory_is_told_of_new_episodes():
    class Counting:
        episodes = 0

        def reset(self):
            self.episodes += 1

        def __call__(self, state, generator):
            return np.zeros(4, int)

    influence = Counting()
    environment = LocalEnvironment("warehouse", 4, influence=influence)
    environment.reset(seed=0)
    environment.step(0)
    environment.reset()
    assert influence.episodes == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": "4"}, "agents: '4' is no integer"),
        ({"agents": 4.0}, r"agents: 4\.0 is no integer"),
        ({"agents": None}, "agents: None is no integer"),
        ({"agents": True}, "agents: True is no integer"),
        ({"agents": 0}, r"agents: 0: Input should be greater than or equal to 1 \(the caller\)"),
        ({"settings": "horizon"}, "settings: 'horizon' is no mapping of the domain's settings to values"),
        ({"settings": 5}, "settings: 5 is no mapping of the domain's settings to values"),
        (
            {"settings": {"horizon": "long"}},
            r"domain\.horizon: 'long': Input should be a valid integer.* \(the caller\)",
        ),
        ({"settings": {1: 2}}, r"settings: 1 is no name of a setting"),
    ],
)
@pytest.mark.parametrize("kind", [GlobalEnvironment, LocalEnvironment])
def test_arguments_of_a_wrong_type_are_named(kind, arguments, message):
    with pytest.raises(UserError, match=rf"^{message}$"):
        kind("warehouse", **arguments)


@pytest.mark.parametrize("agent", ["0", 1.5, None, True, [0]])
def test_an_agent_of_a_wrong_type_is_named(agent):
    with pytest.raises(UserError) as error:
        LocalEnvironment("warehouse", 4, agent=agent)
    assert str(error.value) == f"agent: {agent!r} is no integer"


def test_numbers_of_numpy_are_integers_too():
    environment = LocalEnvironment("warehouse", np.int64(4), agent=np.int32(3))
    environment.reset(seed=0)
    assert environment.step(np.array(2))[3] is False
    environment = GlobalEnvironment("warehouse", np.int64(4))
    environment.reset(seed=0)
    environment.step(dict.fromkeys(environment.agents, np.uint8(3)))


NO_ACTIONS = [4, -1, 1.5, np.nan, None, "1", np.array([1]), 2**70]


@pytest.mark.parametrize("action", NO_ACTIONS, ids=repr)
def test_a_wrong_action_changes_nothing_in_a_local_environment(action):
    def episode(wrong):
        environment = LocalEnvironment("warehouse", 4, settings={"item_probability": 0.3})
        seen = [environment.reset(seed=3)[0].tolist()]
        for t in range(100):
            if wrong and t in (0, 7, 99):
                with pytest.raises(ValueError, match=r"^action: .* is none of 0 to 3$") as error:
                    environment.step(action)
                assert repr(action) in str(error.value)
            observation, reward, _, truncated, info = environment.step(t % 4)
            seen.append((observation.tolist(), reward, truncated, info["influence_sources"].tolist()))
        return seen

    assert episode(True) == episode(False)


@pytest.mark.parametrize("action", NO_ACTIONS, ids=repr)
def test_a_wrong_action_changes_nothing_in_a_global_environment(action):
    def episode(wrong):
        environment = GlobalEnvironment("warehouse", 4, {"item_probability": 0.3})
        seen = [str(environment.reset(seed=3)[0])]
        for t in range(100):
            actions = dict.fromkeys(environment.agents, t % 4)
            if wrong and t in (0, 7, 99):
                with pytest.raises(ValueError, match=r"^actions: agent_2: .* is none of 0 to 3$") as error:
                    environment.step({**actions, "agent_2": action})
                assert repr(action) in str(error.value)
            seen.append(str(environment.step(actions)))
        return seen

    assert episode(True) == episode(False)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"agent_0": 0, "agent_2": 1}, "actions: none for agent_1, agent_3; give one for every agent"),
        ({}, "actions: none for agent_0, agent_1, agent_2, agent_3; give one for every agent"),
        ({f"agent_{i}": 0 for i in range(5)}, "actions: 'agent_4' is none of agent_0 to agent_3"),
        ({**{f"agent_{i}": 0 for i in range(4)}, 0: 1}, "actions: 0 is none of agent_0 to agent_3"),
        ([0, 1, 2, 3], r"actions: \[0, 1, 2, 3\] is no mapping of agents to actions"),
        (None, "actions: None is no mapping of agents to actions"),
    ],
)
def test_missing_and_unknown_agents_are_named_and_change_nothing(actions, message):
    environment = GlobalEnvironment("warehouse", 4)
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=f"^{message}$"):
        environment.step(actions)
    other = GlobalEnvironment("warehouse", 4)
    other.reset(seed=0)
    for _ in range(100):
        both = [env.step(dict.fromkeys(env.possible_agents, 1)) for env in (environment, other)]
        assert str(both[0]) == str(both[1])
    assert environment.agents == []


@pytest.mark.parametrize("env", WORLDS)
@pytest.mark.parametrize("kind", [GlobalEnvironment, LocalEnvironment])
def test_a_step_outside_an_episode_asks_for_a_reset(env, kind):
    environment = kind(env, 4, settings={**WORLDS[env], "horizon": 3})
    action = 0 if kind is LocalEnvironment else {f"agent_{i}": 0 for i in range(4)}
    needed = "^no episode is going on: call reset\\(\\) before the first step and after an episode's last$"
    with pytest.raises(ResetNeeded, match=needed):
        environment.step(action)
    for _ in range(2):
        environment.reset(seed=0)
        for _ in range(3):
            last = environment.step(action)
        assert last[3] is True or all(last[3].values())
        for _ in range(2):
            with pytest.raises(ResetNeeded, match=needed):
                environment.step(action)
    environment.close()


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ([0, 1, 2], r"\[0, 1, 2\]"),
        ([0, 1, 2, 4], r"\[0, 1, 2, 4\]"),
        ([0.0, 1.0, np.nan, 2.0], r"\[0\.0, 1\.0, nan, 2\.0\]"),
        ([0.5, 1.0, 2.0, 2.0], r"\[0\.5, 1\.0, 2\.0, 2\.0\]"),
        ([[0, 1, 2, 3]], r"\[\[0, 1, 2, 3\]\]"),
        ([0, [1, 2], 3], r"\[0, \[1, 2\], 3\]"),
        (["a", "b", "c", "d"], r"\['a', 'b', 'c', 'd'\]"),
        (None, "None"),
    ],
)
def test_wrong_sources_change_nothing(wrong, shown):
    def episode(failing):
        fails = False

        def influence(state, generator):
            right = generator.integers(4, size=4)
            return wrong if fails else right

        environment = LocalEnvironment("warehouse", 4, influence=influence, settings={"item_probability": 0.3})
        environment.reset(seed=5)
        seen = []
        for t in range(100):
            if fails := t in failing:
                with pytest.raises(ValueError, match=f"^influence: {shown} are not 4 sources with classes 0 to 3$"):
                    environment.step(t % 4)
            fails = False
            observation, reward, _, truncated, info = environment.step(t % 4)
            seen.append((observation.tolist(), reward, truncated, info["influence_sources"].tolist()))
        return seen

    assert episode({0, 7, 99}) == episode(set())


def test_an_influence_that_fails_itself_changes_nothing():
    def influence(state, generator):
        sources = generator.integers(4, size=4)
        if failing:
            raise RuntimeError("no predictor")
        return sources

    environment, other = LocalEnvironment("warehouse", 4, influence=influence), LocalEnvironment("warehouse", 4)
    for one in (environment, other):
        one.reset(seed=1)
    failing = True
    with pytest.raises(RuntimeError, match="no predictor"):
        environment.step(0)
    failing = False
    for _ in range(20):
        assert str(environment.step(0)) == str(other.step(0))
