"""The platoon: figures by hand, a plain simulation of one vehicle after the other, collisions, hand-coded drivers."""

import math

import numpy as np
import pytest

from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.platoon import Platoon, PlatoonSettings
from dials_mpi.simulators.registry import make_domain

NO_GAIN, HEADWAY_GAIN, SPEED_GAIN, BOTH_GAINS = range(4)
SCENARIOS = ("catch-up", "slow-down")


def platoon(scenario="catch-up", n_agents=8, **settings) -> Platoon:
    return make_domain("platoon", n_agents, PlatoonSettings(scenario=scenario, **settings))


class Drawn:
    """In the place of a copy's stream: first states in the middle of what they are drawn from, or wherever is said."""

    def __init__(self, share=0.5):
        self._share = share

    def random(self):
        return self._share


def started(domain, copies=1, controller=None, shares=None):
    simulator = domain.global_simulator(copies, controller)
    simulator.seed([Drawn(share) for share in shares or [0.5] * copies])
    simulator.reset()
    return simulator


def driven(domain, act, shares=None, copies=1):
    """Reward per step of an episode, summed over vehicles [B], and at which step they collided [B], -1 for never."""
    simulator = started(domain, copies, shares=shares)
    total, collided = np.zeros(copies), np.full(copies, -1)
    for t in range(domain.horizon):
        step = simulator.step(act(t))
        total += step.rewards.sum(axis=0, dtype=np.float64)
        collided[(collided < 0) & step.terminated.all(axis=0)] = t
    return total / domain.horizon, collided


@pytest.mark.parametrize(
    ("scenario", "action", "per_step", "collision"),
    [
        ("catch-up", NO_GAIN, -400.0, -1),
        ("catch-up", HEADWAY_GAIN, -2099.6409, 95),
        ("catch-up", SPEED_GAIN, -400.0, -1),
        ("catch-up", BOTH_GAINS, -77.5382, -1),
        ("slow-down", NO_GAIN, -2323.7560, 87),
        ("slow-down", HEADWAY_GAIN, -2126.5013, 237),
        ("slow-down", SPEED_GAIN, -2155.3189, 208),
        ("slow-down", BOTH_GAINS, -409.4578, -1),
    ],
)
def test_the_same_action_all_the_time_comes_to_the_figures_of_the_published_environment(
    scenario, action, per_step, collision
):
    """From a first headway of 40 m or a first speed of 30 m/s: sum over eight vehicles, mean over 600 steps."""
    reward, collided = driven(platoon(scenario), lambda t: np.full((8, 1), action))
    assert reward == pytest.approx(per_step, abs=1e-3)
    assert collided == collision


@pytest.mark.parametrize(
    ("scenario", "action", "headway", "speed", "reward"),
    [
        # -(19.9875)² - 0.25² - 0.1 · 2.5², and nothing for the seven behind
        ("catch-up", HEADWAY_GAIN, 39.9875, 15.25, -400.187812),
        ("catch-up", BOTH_GAINS, 39.9875, 15.25, -400.187812),
        # 8 · (-(14.75)² - 0.1 · 2.5²) - 0.009992²; the leader has slowed down by 15/299
        ("slow-down", BOTH_GAINS, 20.009992, 29.75, -1745.5001),
    ],
)
def test_the_first_step_by_hand(scenario, action, headway, speed, reward):
    simulator = started(platoon(scenario))
    step = simulator.step(np.full((8, 1), action))
    assert simulator.headway[0, 0] == pytest.approx(headway, abs=1e-6)
    assert simulator.speed[0, 0] == pytest.approx(speed, abs=1e-9)
    assert step.rewards.sum(dtype=np.float64) == pytest.approx(reward, abs=1e-3)


def plain(scenario: str, n: int, share: float, actions, horizon: int, penalty: float):
    """One episode, one vehicle after the other: observations after each step [n][5] and rewards [n]."""
    catch_up = scenario == "catch-up"
    first_speed = 15.0 if catch_up else 22.5 + 15 * share
    h, v, u = [20.0] * n, [first_speed] * n, [0.0] * n
    if catch_up:
        h[0] = 30 + 20 * share
    leaders = [15.0 if t >= 299 else first_speed + (15 - first_speed) * t / 299 for t in range(horizon + 1)]
    collided, seen, paid = False, [], []

    def optimal(headway):
        if headway <= 5:
            return 0.0
        return 30.0 if headway >= 35 else 15 * (1 - math.cos(math.pi * (headway - 5) / 30))

    for t in range(horizon):
        if not collided:
            lead, lead_after, before = leaders[t], leaders[t + 1], list(v)
            for i in range(n):
                alpha, beta = ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5))[actions[t][i]]
                wanted = alpha * (optimal(h[i]) - before[i]) + beta * (lead - before[i])
                v[i] = min(max(before[i] + 0.1 * min(max(wanted, -2.5), 2.5), 0.0), 30.0)
                u[i] = (v[i] - before[i]) / 0.1
                h[i] += 0.05 * (lead + lead_after - before[i] - v[i])
                lead, lead_after = before[i], v[i]
            collided = min(h) < 1
            observations = []
            for i in range(n):
                faster = (v[i - 1] if i else leaders[t + 1]) - v[i]
                clipped = [min(max(x / 5, -2), 2) for x in (faster, optimal(h[i]) - v[i])]
                observations.append([(v[i] - 15) / 15, *clipped, (h[i] + 0.1 * faster - 20) / 20, u[i] / 2.5])
        seen.append(observations)
        free = [-((h[i] - 20) ** 2) - (v[i] - 15) ** 2 - 0.1 * u[i] ** 2 for i in range(n)]
        paid.append([-penalty] * n if collided else free)
    return np.array(seen), np.array(paid), collided


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_copies_side_by_side_live_what_a_plain_simulation_of_each_does(scenario, n):
    """Drivers from reckless to careful, so that some copies collide and others do not."""
    copies, horizon, penalty = 5, 500, 70.0
    generator = np.random.default_rng(n)
    shape = (horizon, n, copies)
    actions = np.full(shape, HEADWAY_GAIN)
    actions[40:] = NO_GAIN  # they close up and do not brake
    actions = np.where(generator.random(shape) < 0.25 * np.arange(copies), BOTH_GAINS, actions)
    actions[:10] = generator.integers(4, size=(10, n, copies))
    shares = generator.random(copies).tolist()
    simulator = started(platoon(scenario, n, horizon=horizon, collision_penalty=penalty), copies, shares=shares)
    steps = [simulator.step(actions[t]) for t in range(horizon)]
    ends = 0
    for b in range(copies):
        seen, paid, collided = plain(scenario, n, shares[b], actions[:, :, b], horizon, penalty)
        np.testing.assert_allclose([step.observations[:, b] for step in steps], seen, atol=1e-5)
        np.testing.assert_allclose([step.rewards[:, b] for step in steps], paid, rtol=1e-5, atol=1e-5)
        assert steps[-1].terminated[:, b].tolist() == [collided] * n
        ends += collided
    assert 0 < ends < copies


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_first_states_are_drawn_as_published(scenario):
    copies = 4000
    domain = platoon(scenario)
    simulator = domain.global_simulator(copies)
    simulator.seed([np.random.default_rng(i) for i in range(copies)])
    observations = simulator.reset()
    drawn, (low, high) = (
        (simulator.headway[0], (30, 50)) if scenario == "catch-up" else (simulator.speed[0], (22.5, 37.5))
    )
    shares = np.sort((drawn - low) / (high - low))
    assert abs(shares - (np.arange(copies) + 0.5) / copies).max() < 1.63 / np.sqrt(copies), "uniform"
    assert (simulator.headway[1:] == 20).all()
    assert (simulator.speed == simulator.leader).all()
    assert not observations[..., 4].any()
    again = simulator.reset()
    assert not np.array_equal(again, observations), "another episode"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_collision_ends_the_episode_of_all_vehicles_of_its_copy_and_of_no_other(scenario):
    domain = platoon(scenario, collision_penalty=1000)
    actions = np.full((8, 2), BOTH_GAINS)
    actions[:, 0] = HEADWAY_GAIN
    simulator = started(domain, 2)
    last = None
    for t in range(domain.horizon):
        step = simulator.step(actions)
        assert not step.terminated[:, 1].any()
        if last is not None and last.terminated.any():
            assert step.terminated[:, 0].all()
            assert np.array_equal(step.observations[:, 0], last.observations[:, 0])
        assert (step.rewards[:, 0] == domain.absorbing_reward).all() == step.terminated[:, 0].any()
        actions[:, 0] = t % 4 if step.terminated.any() else HEADWAY_GAIN
        last = step
    assert domain.absorbing_reward == -1000
    assert last.terminated[:, 0].all()
    simulator.reset()
    actions[:] = BOTH_GAINS
    again, first = simulator.step(actions), started(domain, 2).step(actions)
    assert np.array_equal(again.observations, first.observations)
    assert not again.terminated.any()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("n_agents", [1, 2, 8])
def test_conforms_to_the_interface(scenario, n_agents):
    check_domain(platoon(scenario, n_agents))


@pytest.mark.parametrize(("scenario", "share", "action"), [("slow-down", 1.0, NO_GAIN), ("catch-up", 1.0, SPEED_GAIN)])
def test_observations_stay_in_their_range(scenario, share, action):
    """The sharpest cut of a first speed, and a headway that opens for a whole episode, before one that stands still."""
    domain = platoon(scenario, 3)
    low, high = domain.observation_range
    simulator = started(domain, shares=[share])
    if scenario == "catch-up":
        simulator.speed[0] = 0.0
        simulator.leader[:] = simulator._first_speed[:] = 30.0
    seen = np.array([simulator.step(np.full((3, 1), action)).observations for _ in range(domain.horizon)])
    assert low <= seen.min()
    assert seen.max() <= high
    assert seen[..., 0].min() >= -1
    assert seen[..., 0].max() <= 1
    assert abs(seen[..., 1:3]).max() <= 2


@pytest.mark.parametrize(
    ("scenario", "driver", "per_step", "collisions"),
    [
        ("catch-up", "do-nothing", -413, 0),
        ("catch-up", "constant", -77, 0),
        ("catch-up", "greedy", -36, 0),
        ("catch-up", "random", -1679, 0.99),
        ("slow-down", "do-nothing", -2231, 1),
        ("slow-down", "constant", -466, 0),
        ("slow-down", "greedy", -564, 0),
        ("slow-down", "random", -1831, 0.98),
    ],
)
def test_reference_drivers_earn_what_was_found_before(scenario, driver, per_step, collisions):
    """Means of a hundred episodes each, here and in another program: the same within three standard errors."""
    episodes = 100
    simulator = platoon(scenario).global_simulator(episodes, None if driver == "random" else driver)
    simulator.seed([np.random.default_rng(i) for i in range(episodes)])
    simulator.reset()
    generator = np.random.default_rng(episodes)
    rewards = 0.0
    for _ in range(600):
        step = simulator.step(generator.integers(4, size=(8, episodes)) if driver == "random" else None)
        rewards = rewards + step.rewards.sum(axis=0) / 600
    assert rewards.mean() == pytest.approx(per_step, abs=3 * np.sqrt(2 / episodes) * rewards.std())
    assert step.terminated[0].mean() == pytest.approx(collisions, abs=0.05)


def test_a_driver_s_actions_are_told_for_replays():
    domain = platoon()
    driven_by_itself, replayed = started(domain, controller="greedy"), started(domain)
    chosen = set()
    for _ in range(200):
        step = driven_by_itself.step(None)
        actions = driven_by_itself.actions()
        assert np.array_equal(replayed.step(actions).rewards, step.rewards)
        chosen |= set(actions.ravel().tolist())
    assert len(chosen) > 2


def test_the_greedy_driver_takes_what_pays_most_in_a_second():
    """20 m too far behind: 2.5 m/s² bring it 1.25 m closer, which is worth 48 and costs 2.5² + 0.1 · 2.5²."""
    domain = platoon()
    simulator = started(domain, controller="greedy")
    simulator.step(None)
    assert simulator.actions().ravel().tolist() == [HEADWAY_GAIN, *[NO_GAIN] * 7]


@pytest.mark.parametrize("n_agents", [0, -3])
def test_a_platoon_has_vehicles(n_agents):
    with pytest.raises(ValueError, match=f"{n_agents} vehicles make no platoon; it has 1 or more"):
        Platoon(n_agents, PlatoonSettings())


def test_the_graph_is_a_line():
    assert sorted(platoon(n_agents=4).graph.edges) == [(0, 1), (1, 2), (2, 3)]
    assert list(platoon(n_agents=1).graph) == [0]
