"""PettingZoo and Gymnasium adapters, checked by these libraries' own tests; and pictures."""

import warnings

import numpy as np
import pytest
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
