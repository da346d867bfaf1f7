"""Traffic: SUMO behind the interface, the semantics of lights, lanes and entries, and what the LS keeps of the GS."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import sumolib

from dials_mpi.errors import UserError
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.registry import make_domain
from dials_mpi.simulators.replay import disagreement, replay
from dials_mpi.simulators.traffic import TrafficSettings, network, sumo
from dials_mpi.simulators.traffic.fidelity import agreement
from dials_mpi.simulators.traffic.handcoded import FixedTime
from dials_mpi.simulators.traffic.local_simulator import TrafficLocalSimulator
from dials_mpi.simulators.traffic.network import GREENS, light_state
from dials_mpi.training.evaluation import evaluate_controller

BACKENDS = ("libsumo", "traci")


def traffic(agents: int = 4, **settings):
    return make_domain("traffic", agents, TrafficSettings(**settings))


def generators(n: int, first: int = 0):
    return [np.random.default_rng(first + i) for i in range(n)]


def play_global(domain, copies, steps, actions, seed=0):
    """Local states, influence sources, rewards and observations after each step, [T, N, B, …]."""
    seen = [[], [], [], []]
    with domain.global_simulator(copies) as gs:
        gs.seed(generators(copies, seed))
        gs.reset()
        for t in range(steps):
            step = gs.step(actions[t])
            for rows, row in zip(
                seen, (gs.local_states(), gs.influence_sources(), step.rewards, step.observations), strict=True
            ):
                rows.append(row.copy())
    return [np.array(rows) for rows in seen]


def play_local(domain, agents, copies, actions, sources, seed=0):
    """Local states, rewards and observations after each step, [T, A, B, …]."""
    seen = [[], [], []]
    with domain.local_simulator(agents, copies) as ls:
        ls.seed(generators(len(agents), seed))
        ls.reset()
        for a, u in zip(actions, sources, strict=True):
            step = ls.step(a, u)
            for rows, row in zip(seen, (ls.local_states(), step.rewards, step.observations), strict=True):
                rows.append(row.copy())
    return [np.array(rows) for rows in seen]


def random_actions(steps, *shape, p=0.5):
    return (np.random.default_rng(99).random((steps, *shape)) < p).astype(np.int64)


@pytest.mark.parametrize(
    "domain",
    [
        traffic(),
        traffic(backend="traci"),
        traffic(6, rows=2, columns=3, lanes=2),
        traffic(1, edge_length=60, cell_length=12, outgoing_length=15, speed_limit=11.5),
        traffic(25),
    ],
    ids=["libsumo", "traci", "2x3-two-lanes", "short", "25"],
)
def test_keeps_what_the_interface_promises(domain):
    check_domain(domain)


def test_both_backends_give_the_same_trajectory():
    actions = random_actions(150, 4, 3, p=0.15)
    sources = (np.random.default_rng(7).random((150, 4, 3, 4)) < 0.2).astype(np.uint8)
    results = []
    for backend in BACKENDS:
        domain = traffic(backend=backend)
        results.append(
            play_global(domain, 3, 150, actions) + play_local(domain, range(4), 3, actions, sources),
        )
    for first, second in zip(*results, strict=True):
        assert np.array_equal(first, second)
    assert results[0][0].any()
    assert results[0][4].any()


def test_whole_episodes_do_not_leak_into_the_next_one():
    """Nothing of an episode is left after `reset`: no vehicle, no queue outside the city, no yellow, no timer."""
    domain = traffic(horizon=80)
    actions = random_actions(80, 4, 2)
    first = play_global(domain, 2, 80, actions)
    with domain.global_simulator(2) as gs:
        gs.seed(generators(2, 50))
        gs.reset()
        for t in range(79):
            gs.step(np.full((4, 2), int(t == 78)))  # ends in the first second of yellow, queues before every red light
        gs.seed(generators(2))
        observations = gs.reset()
        assert not observations[:, :, :36].any()
        assert (observations[:, :, 36] == 1).all()
        for t in range(80):
            gs.step(actions[t])
            assert np.array_equal(gs.local_states(), first[0][t])
            assert np.array_equal(gs.influence_sources(), first[1][t])


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_lanes_and_yellow_do_not_leak_into_the_next_local_episode(backend):
    domain = traffic(backend=backend)
    actions = random_actions(40, 1, 3, p=0.1)
    sources = (np.random.default_rng(3).random((40, 1, 3, 4)) < 0.2).astype(np.uint8)
    fresh = play_local(domain, [0], 3, actions, sources)
    with domain.local_simulator([0], 3) as ls:
        ls.seed(generators(1, 9))
        ls.reset()
        for t in range(70):
            ls.step(np.full((1, 3), int(t == 68)), np.ones((1, 3, 4), np.uint8))
        ls.seed(generators(1))
        assert ls.reset()[0, 0].tolist() == [0] * 36 + [1, 0, 0, 0]
        for t in range(40):
            step = ls.step(actions[t], sources[t])
            assert np.array_equal(step.observations, fresh[2][t])
            assert np.array_equal(step.rewards, fresh[1][t])


def test_a_vehicle_that_sumo_moves_on_after_a_collision_does_not_come_back_in_the_next_episode():
    """It is on no road and does not wait to enter: it cannot be removed."""
    actions, sources = np.zeros((40, 1, 1), int), np.eye(4, dtype=np.uint8)[[[[0]]] * 40]
    domain = traffic(outgoing_length=20)
    fresh = play_local(domain, [0], 1, actions, sources)
    with domain.local_simulator([0], 1) as ls:
        ls.seed(generators(1))
        ls.reset()
        vehicles = ls.intersections.sumo._api.vehicle
        for t in range(100):
            ls.step(actions[0], sources[0])
            for vehicle in vehicles.getIDList():  # the way out fills up, and who comes last drives into the queue
                if vehicles.getLaneID(vehicle).startswith("e0_1_1") and vehicles.getLanePosition(vehicle) > 10:
                    vehicles.setSpeed(vehicle, 0)
            if t > 25:
                vehicles.setSpeedMode(vehicle, 0)
                vehicles.setSpeed(vehicle, 10)
            if len(vehicles.getIDList()) < len(vehicles.getLoadedIDList()):
                break
        else:
            pytest.fail("no vehicle was moved on")
        ls.seed(generators(1))
        ls.reset()
        for t in range(40):
            step = ls.step(actions[t], sources[t])
            assert np.array_equal(step.observations, fresh[2][t])
            assert np.array_equal(step.rewards, fresh[1][t])


@pytest.mark.parametrize("controller", ["actuated", "fixed-time"])
def test_controllers_start_every_episode_alike(controller):
    domain = traffic()
    episodes = []
    with domain.global_simulator(2, controller) as gs:
        for steps in (45, 60, 60):
            gs.seed(generators(2))
            gs.reset()
            seen = [(gs.step(None).observations.copy(), gs.actions().copy()) for _ in range(steps)]
            episodes.append(seen)
    for (observed, acted), (again, acted_again) in zip(*episodes[1:], strict=True):
        assert np.array_equal(observed, again)
        assert np.array_equal(acted, acted_again)
    # Whoever switches: the actions tell when a green ended.
    lights = np.array([observation[:, :, 36:].argmax(axis=-1) for observation, _ in episodes[1]])
    acted = np.array([actions for _, actions in episodes[1]])
    ended = (lights[1:] != lights[:-1]) & (lights[1:] % 2 == 1)
    assert np.array_equal(acted[1:] == 1, ended)
    assert ended.sum() >= 8


def test_tiles_do_not_know_of_each_other():
    """Equal tiles side by side live equal lives, wherever they lie in the network and however full they are."""
    with traffic().local_simulator([0], 60) as ls:
        ls.seed(generators(1))
        ls._speed_factors = lambda speeds: np.repeat([[0.97, 0.99, 1.0, 0.96]], 60, axis=0).ravel()
        ls.reset()
        rng = np.random.default_rng(0)
        for _ in range(200):
            actions = np.full((1, 60), rng.random() < 0.1).astype(int)
            sources = np.repeat(rng.random((1, 1, 4)) < 0.4, 60, axis=1).astype(np.uint8)
            step = ls.step(actions, sources)
            assert (step.observations == step.observations[:, :1]).all()
            assert (step.rewards == step.rewards[:, :1]).all()


def test_sumo_counts_links_clockwise_from_the_north(tmp_path):
    """The light states and the approaches of the observation rely on it."""
    domain = traffic(6, rows=2, columns=3, lanes=2)
    domain.scratch = tmp_path
    built = domain.global_simulator(2).intersections.network
    (file,) = tmp_path.glob("*.net.xml")
    net = sumolib.net.readNet(str(file), withInternal=True)
    for place in built.intersections:
        links = sorted((link, lane.getID()) for lane, _, link in net.getTLS(built.light(*place)).getConnections())
        assert links == [
            (4 * 0 + i, lane)
            for i, lane in enumerate(f"{edge}_{k}" for edge in built.approaches(*place) for k in range(2))
        ]
    north, east, south, west = built.approaches(1, 2, 3)
    light = net.getNode(built.light(1, 2, 3)).getCoord()
    for edge, (right, up) in ((north, (0, 1)), (east, (1, 0)), (south, (0, -1)), (west, (-1, 0))):
        start = np.array(net.getEdge(edge).getFromNode().getCoord())
        assert np.allclose(start - light, (100 * right, 100 * up))


def test_lanes_are_as_long_as_published(tmp_path):
    domain = traffic(25, outgoing_length=20)
    domain.scratch = tmp_path
    domain.global_simulator(3)
    domain.local_simulator(range(25), 3)
    lengths = set()
    for file in tmp_path.glob("*.net.xml"):
        net = sumolib.net.readNet(str(file), withInternal=True)
        lengths |= {
            (edge.isSpecial(), edge.getToNode().getType() == "traffic_light" if not edge.isSpecial() else None, lane)
            for edge in net.getEdges()
            for lane in [edge.getLanes()[0].getLength()]
        }
    assert lengths == {(True, None, 18.8), (False, True, 100.0), (False, False, 100.0), (False, False, 20.0)}


def test_a_switch_is_three_seconds_of_yellow_that_ignore_actions():
    domain = traffic()
    # Switch at once, go on asking; then keep; then switch back.
    asked = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    shown = [1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]
    with domain.local_simulator([0], 1) as ls:
        ls.seed(generators(1))
        ls.reset()
        for action, phase in zip(asked, shown, strict=True):
            observation = ls.step(np.array([[action]]), np.zeros((1, 1, 4), np.uint8)).observations[0, 0]
            assert observation[36:].tolist() == np.eye(4)[phase].tolist()
            assert ls.intersections.states() == [["GrGr", "yryr", "rGrG", "ryry"][phase]]
    assert [light_state(green, "G", 2) for green in GREENS] == ["GGrrGGrr", "rrGGrrGG"]


@pytest.fixture
def empty_crossing():
    with traffic().local_simulator([0], 1) as ls:
        ls.seed(generators(1))
        ls.reset()
        yield ls


def lane_of(ls: TrafficLocalSimulator, *sources: int):
    """A step with the given sources, all lights kept; the vehicles after it."""
    vehicles = []
    read = ls.intersections._read
    ls.intersections._read = lambda seen: (vehicles.append(seen), read(seen))
    u = np.zeros((1, 1, 4), np.uint8)
    u[0, 0, list(sources)] = 1
    step = ls.step(np.zeros((1, 1), int), u)
    ls.intersections._read = read
    return vehicles[0], step


def test_a_source_lets_a_vehicle_enter_six_metres_into_the_lane(empty_crossing):
    vehicles, step = lane_of(empty_crossing, 1)
    assert (vehicles.lanes.tolist(), vehicles.positions.tolist(), vehicles.speeds.tolist()) == ([1], [6.0], [9.5])
    assert step.rewards[0, 0] == np.float32(0.95)
    assert empty_crossing.intersections.bits[0, 1].tolist() == [0] * 9 + [1]
    assert not empty_crossing.local_states().any()
    lane_of(empty_crossing)
    assert empty_crossing.local_states()[0, 0].reshape(4, 9)[1].tolist() == [0] * 8 + [1], "10 m on: the next cell"


def test_a_vehicle_without_room_is_dropped_and_never_comes_back(empty_crossing):
    lane_of(empty_crossing, 1)
    vehicles, _ = lane_of(empty_crossing, 1)  # the first one stands 15 m in: too close at 9.5 m/s
    assert len(vehicles.lanes) == 1
    for _ in range(60):
        vehicles, _ = lane_of(empty_crossing, 1)  # red: the lane fills up
    assert len(vehicles.lanes) > 8
    full = len(vehicles.lanes)
    for _ in range(30):
        vehicles, _ = lane_of(empty_crossing)
        assert len(vehicles.lanes) == full


def test_on_a_crowded_lane_vehicles_enter_slowly(empty_crossing):
    entered = {}
    for _ in range(80):
        before = int(empty_crossing.intersections.counts[0, 1])
        vehicles, _ = lane_of(empty_crossing, 1)
        if len(vehicles.lanes) > before:
            entered[before] = float(vehicles.speeds[vehicles.positions.argmin()])
    assert {before for before, speed in entered.items() if speed == 3.0} == {k for k in entered if k > 8}
    assert {before for before, speed in entered.items() if speed == 9.5} == {k for k in entered if k <= 8}
    assert max(entered) > 8


def test_speed_factors_are_drawn_as_sumo_does():
    with traffic().local_simulator(range(5), 200) as ls:
        ls.seed(generators(5))
        factors = ls._speed_factors(np.full(4000, 0.95))
        slow = ls._speed_factors(np.full(4000, 0.3))
    assert factors.min() == 0.95
    assert factors.max() == 1.0
    assert slow.min() < 0.8, "slow entries force nobody to be faster"
    # P(N(1, 0.1) < 0.95) = 0.309, twice in a row 0.095; P(≥ 1) = 0.5, and 0.309 · 0.5 at the second draw.
    assert abs((factors == 0.95).mean() - 0.095) < 0.015
    assert abs((factors == 1.0).mean() - 0.654) < 0.025


def test_reward_is_the_mean_speed_of_vehicles_on_incoming_lanes():
    domain = traffic()
    with domain.global_simulator(2) as gs:
        gs.seed(generators(2))
        gs.reset()
        vehicles, edges = gs.intersections.sumo._api.vehicle, gs.intersections.sumo._api.edge
        for t in range(120):
            rewards = gs.step(np.full((4, 2), int(t % 17 == 0))).rewards
        for k, place in enumerate(gs.intersections.network.intersections):
            speeds = [
                vehicles.getSpeed(vehicle)
                for edge in gs.intersections.network.approaches(*place)
                for vehicle in edges.getLastStepVehicleIDs(edge)
            ]
            assert np.isclose(rewards[k % 4, k // 4], np.mean(speeds) / 10, atol=1e-5)


def test_reference_returns():
    """On the published code and the same SUMO 174 and 141; in the paper 176 and 144."""
    domain = traffic()
    actuated = evaluate_controller(domain, "actuated", 60, seed=0)
    random = evaluate_controller(domain, None, 40, seed=0)
    assert abs(actuated.mean_return - 173) <= 4
    assert abs(random.mean_return - 140) <= 4


FIDELITY = {
    # Bounds for every light, a little wider than the worst of three runs of `tools/fidelity_traffic.py`.
    "random": {"bits": 0.98, "occupied": 0.93, "queue error": 0.065, "queue correlation": 0.98}
    | {"reward error": 0.025, "reward correlation": 0.97},
    FixedTime.CYCLE: {"bits": 0.982, "occupied": 0.93, "queue error": 0.035, "queue correlation": 0.983}
    | {"reward error": 0.016, "reward correlation": 0.99},
    # Lanes fill up to their ends, and beyond: vehicles that wait outside the region are not seen by the LS.
    60: {"bits": 0.965, "occupied": 0.88, "queue error": 0.12, "queue correlation": 0.965}
    | {"reward error": 0.03, "reward correlation": 0.97},
}


@pytest.mark.parametrize("policy", FIDELITY)
def test_the_ls_under_perfect_influence_follows_the_gs(policy):
    """GS episodes replayed in the LS with the recorded sources and actions."""
    domain, copies = traffic(outgoing_length=20), 6
    if policy == "random":
        actions = iter(random_actions(300, 4, copies))
        replayed = replay(domain, copies, lambda *_: next(actions))
    else:
        plan = FixedTime(4 * copies, policy)
        replayed = replay(domain, copies, lambda *_: plan.act().reshape(4, copies))
    figures = agreement(replayed, lanes=4)
    for name, bound in FIDELITY[policy].items():
        assert ((figures[name] <= bound) if "error" in name else (figures[name] >= bound)).all(), (name, figures[name])
    returns, local_returns = figures["return"].mean(), figures["LS return"].mean()
    assert abs(returns - local_returns) / returns <= 0.03


class LateSources:
    """A GS that tells u a step late."""

    def __init__(self, gs):
        self._gs = gs

    def __getattr__(self, name):
        return getattr(self._gs, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._gs.close()

    def reset(self):
        observations = self._gs.reset()
        self._now = self._gs.influence_sources()
        return observations

    def step(self, actions):
        self._before, step = self._now, self._gs.step(actions)
        self._now = self._gs.influence_sources()
        return step

    def influence_sources(self):
        return self._before


def with_fault(domain, fault):
    whole = domain.global_simulator, domain.local_simulator
    if fault == "late":
        domain.global_simulator = lambda copies, controller=None: LateSources(whole[0](copies, controller))
    if fault == "ignored":

        def local_simulator(agents, copies):
            ls = whole[1](agents, copies)
            ls.step = lambda actions, sources: TrafficLocalSimulator.step(ls, actions, 0 * sources)
            return ls

        domain.local_simulator = local_simulator
    return domain


@pytest.mark.parametrize(("agents", "seeds"), [(1, (0, 1, 2)), (4, (0, 1, 2)), (25, (0,))])
def test_the_tolerance_of_replays_lies_between_the_ls_and_one_with_wrong_influence(agents, seeds):
    """With room on both sides, for the worst light."""
    worst = {}
    for fault in (None, "late", "ignored"):
        found = []
        for seed in seeds:
            for p in (0.5, 0.1):
                actions = iter(random_actions(100, agents, 3, p=p))
                domain = with_fault(traffic(agents), fault)
                recorded, replayed = replay(domain, 3, lambda *_, actions=actions: next(actions), seed, 100)
                pairs = zip(recorded[:3], replayed[:3], strict=True)  # local states, observations, rewards
                found.append([disagreement(*both).max() for both in pairs])
        worst[fault] = np.array(found)
    assert worst[None].max() < 0.75 * domain.replay_tolerance
    assert worst["late"].max(axis=1).min() > 1.25 * domain.replay_tolerance
    assert worst["ignored"].max(axis=1).min() == 1


@pytest.mark.parametrize("fault", ["late", "ignored"])
def test_wrong_influence_is_refused(fault):
    with pytest.raises(
        UserError, match=r"lives another one: first at step \d+, agent \d, copy \d, where the (local state|reward) "
    ):
        check_domain(with_fault(traffic(), fault))


def test_shorter_outgoing_lanes_change_next_to_nothing():
    actions = random_actions(200, 4, 4, p=0.1)
    sources = (np.random.default_rng(7).random((200, 4, 4, 4)) < 0.12).astype(np.uint8)
    long, short = (play_local(traffic(outgoing_length=m), range(4), 4, actions, sources) for m in (100, 20))
    assert (long[0] == short[0]).mean() > 0.9995
    assert abs(long[1] - short[1]).mean() < 0.0005


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_chains_of_episodes_do_not_grow(backend):
    with traffic(backend=backend).local_simulator(range(4), 4) as ls:
        ls.seed(generators(4))
        rng = np.random.default_rng(0)
        memory = []
        for episode in range(60):
            ls.reset()
            for _ in range(20):
                ls.step(rng.integers(2, size=(4, 4)), (rng.random((4, 4, 4)) < 0.2).astype(np.uint8))
            if episode in (19, 59):
                memory.append([p.memory_info().rss / 2**20 for p in (psutil.Process(), *children())])
    assert (np.subtract(*reversed(memory)) < 5).all(), f"MiB after 20 and 60 episodes: {memory}"


def test_libsumo_simulators_of_a_process_do_not_mix():
    domain = traffic()
    ones, sources = np.ones((1, 1), int), np.ones((1, 1, 4), np.uint8)
    with domain.local_simulator([0], 1) as first, domain.local_simulator([0], 1) as second:
        for ls in (first, second):
            ls.seed(generators(1))
            ls.reset()
        with pytest.raises(RuntimeError, match=r"domain\.backend=traci"):
            first.step(ones, sources)
        with pytest.raises(RuntimeError, match=r"domain\.backend=traci"):
            first.intersections.sumo.poses()
        assert len(second.intersections.sumo.poses()) == 0, "untouched"
        assert second.step(0 * ones, 0 * sources).observations[0, 0].tolist() == [0] * 36 + [1, 0, 0, 0]
        assert second.intersections.sumo._api.trafficlight.getRedYellowGreenState("n0_1_1") == "GrGr"


def children():
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_with_traci_each_simulator_has_a_child_that_ends_with_it():
    domain, before = traffic(backend="traci"), len(children())
    with domain.local_simulator([0], 1) as first, domain.local_simulator([0], 1) as second:
        for ls in (first, second):
            ls.seed(generators(1))
            ls.reset()
        for ls in (first, second):
            ls.step(np.zeros((1, 1), int), np.ones((1, 1, 4), np.uint8))
        assert len(children()) == before + 2
    assert len(children()) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, "exception", "exit"])
def test_no_sumo_outlives_its_program(how):
    ending = {"exception": "raise RuntimeError", "exit": "sys.exit(0)"}.get(how, "time.sleep(60)")
    program = f"""
import sys, time, numpy as np
from dials_mpi.simulators.registry import make_domain
from dials_mpi.simulators.replay import replay
from dials_mpi.simulators.traffic import TrafficSettings, network, sumo
from dials_mpi.simulators.traffic.fidelity import agreement
ls = make_domain("traffic", 4, TrafficSettings(backend="traci")).local_simulator([0], 1)
ls.seed([np.random.default_rng(0)])
ls.reset()
print(ls.intersections.sumo._child._process.pid, flush=True)
sys.stdin.readline()
{ending}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    child = psutil.Process(int(process.stdout.readline()))
    assert "sumo" in child.name()
    if isinstance(how, signal.Signals):
        process.send_signal(how)
    process.communicate("\n", timeout=30)
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone


@pytest.mark.parametrize(
    ("agents", "settings", "message"),
    [
        (5, {}, "5 agents make no m×m grid; the nearest that do: 4 or 9"),
        (5, {"rows": 2, "columns": 3}, "5 agents are not domain.rows × domain.columns = 2 × 3"),
    ],
)
def test_grids_that_do_not_fit_are_refused(agents, settings, message):
    with pytest.raises(UserError, match=message):
        traffic(agents, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edge_length": 95}, "edge_length 95 must be two or more whole cells of cell_length 10"),
        ({"edge_length": 30, "junction_radius": 9}, "edge_length 30 leaves 8.8 m of road"),
        ({"speed_limit": 12}, "speed_limit 12 m/s is more than a cell of cell_length 10 m per step"),
        ({"edge_length": 66.666}, "edge_length 66.666 is finer than the 0.01"),
        ({"cell_length": 5}, "cell_length 5 must be more than 6 m"),
        ({"rows": 3}, "give both rows and columns"),
        ({"inflow_probability": 1.5}, "less than or equal to 1"),
        ({"backend": "cityflow"}, "'libsumo' or 'traci'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrafficSettings(**settings)


def test_what_netconvert_refuses_is_one_line(monkeypatch, tmp_path):
    domain = traffic()
    domain.scratch = tmp_path / "scratch"
    monkeypatch.setattr(network.RoadNetwork, "light", lambda self, copy, i, j: "the same")
    with pytest.raises(UserError, match="netconvert cannot build the road network: Error: "):
        domain.global_simulator(1)
    assert list(domain.scratch.iterdir()) == []


def with_netconvert(folder, script: str):
    """A domain whose netconvert is a shell script."""
    domain = traffic()
    (folder / "netconvert").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "netconvert").chmod(0o755)
    domain._binaries, domain.scratch = folder, folder / "scratch"
    return domain


def test_a_killed_netconvert_is_one_line(tmp_path):
    domain = with_netconvert(tmp_path, "kill -9 $$")
    with pytest.raises(UserError, match="netconvert cannot build the road network: it ended with -9"):
        domain.global_simulator(1)
    domain._binaries = tmp_path / "nowhere"
    with pytest.raises(UserError, match="netconvert cannot be started: No such file"):
        domain.global_simulator(1)


def test_a_network_cut_short_by_a_full_disk_is_not_kept(tmp_path):
    """netconvert does not notice."""
    domain = with_netconvert(tmp_path, "printf '<net><edge' > net.xml")
    with pytest.raises(UserError, match="netconvert could not write the whole file; make room"):
        domain.global_simulator(1)
    assert list(domain.scratch.iterdir()) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_that_sumo_refuses_is_one_line(backend, tmp_path):
    domain = traffic(backend=backend)
    domain.scratch = tmp_path
    ls = domain.local_simulator([0], 1)
    (file,) = tmp_path.glob("*.net.xml")
    file.write_text(file.read_text()[:3000])
    with pytest.raises(UserError, match=r"SUMO (refuses its network|ended at its start)"):
        ls.reset()
    ls.close()


@pytest.mark.parametrize("missing", ["eclipse-sumo", "libsumo", "sumolib"])
def test_a_missing_sumo_is_named(monkeypatch, missing):
    real = importlib.metadata.version

    def version(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=rf"{missing} is not installed; pip install .*dials_mpi\[traffic\]"):
        traffic()


def test_parts_of_different_versions_are_refused(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3" if name == "libsumo" else real(name))
    with pytest.raises(UserError, match=r"different versions \(eclipse-sumo .*, libsumo 1.2.3\)"):
        traffic()


def test_a_port_taken_in_between_is_tried_again(monkeypatch):
    """Another program listens on the port that was free a moment ago, and never says a word."""
    monkeypatch.setattr(sumo, "_SECONDS_TO_INTRODUCE", 0.5)
    free = sumolib.miscutils.getFreeSocketPort
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(sumolib.miscutils, "getFreeSocketPort", lambda: next(ports, None) or free())
        with traffic(backend="traci").local_simulator([0], 1) as ls:
            ls.seed(generators(1))
            ls.reset()
        assert next(ports, None) is None


def test_no_port_at_all_is_one_line(monkeypatch):
    before = len(children())
    monkeypatch.setattr(sumo, "_SECONDS_TO_INTRODUCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sumolib.miscutils, "getFreeSocketPort", lambda: port)
        ls = traffic(backend="traci").local_simulator([0], 1)
        with pytest.raises(UserError, match=rf"5 ports of this machine, the last {port}: .*domain\.backend=libsumo"):
            ls.reset()
    assert len(children()) == before


def test_another_sumo_on_the_port_is_not_mistaken_for_ours(monkeypatch):
    """Two ranks may be given the same free port at the same time."""
    domain = traffic(backend="traci")
    binaries, _ = sumo.installation("traci")
    free = sumolib.miscutils.getFreeSocketPort
    port = free()
    files = domain.local_simulator([0], 1).intersections.sumo._files
    other = subprocess.Popen(
        [str(binaries / "sumo"), *files, "--remote-port", str(port), "--seed", "1"], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        ports = iter([port])
        monkeypatch.setattr(sumolib.miscutils, "getFreeSocketPort", lambda: next(ports, None) or free())
        with domain.local_simulator([0], 1) as ls:
            ls.seed(generators(1))
            ls.reset()
            vehicles, _ = lane_of(ls, 1)
            assert len(vehicles.lanes) == 1
    finally:
        other.kill()
        other.wait()


def test_an_unwritable_folder_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    domain = traffic()
    domain.scratch = blocked / "scratch"
    with pytest.raises(UserError, match=r"road network cannot be written to .*scratch: Not a directory"):
        domain.global_simulator(1)
