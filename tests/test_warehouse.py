"""The warehouse: geometry, step order, and that the LS relives every agent's life in the GS exactly."""

import numpy as np
import pytest

from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.warehouse import Warehouse, WarehouseSettings, grid_side
from dials_mpi.simulators.warehouse.global_simulator import shelf_cells
from dials_mpi.simulators.warehouse.handcoded import HandcodedRobots
from dials_mpi.simulators.warehouse.regions import (
    CENTRE,
    FIRST_ACTION,
    NEVER,
    NEXT_POSITION,
    PATH_LENGTH,
    SHELF_AT,
    SHELVES,
    SIZE,
    Floor,
)
from dials_mpi.streams import streams
from dials_mpi.training.evaluation import evaluate_controller

UP, DOWN, LEFT, RIGHT = range(4)


def warehouse(n_agents: int, **settings) -> Warehouse:
    return Warehouse(n_agents, WarehouseSettings(**settings))


def seeded(simulator, n: int, seed: int = 0):
    simulator.seed([np.random.default_rng((seed, i)) for i in range(n)])
    return simulator


@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((2, 2), UP, (1, 2)),
        ((2, 2), RIGHT, (2, 3)),
        ((1, 2), UP, (0, 2)),  # onto a shelf of the top row
        ((0, 2), UP, (0, 2)),  # out of the region
        ((0, 2), LEFT, (0, 2)),  # along the shelf
        ((0, 2), DOWN, (1, 2)),
        ((2, 0), UP, (2, 0)),
        ((2, 0), RIGHT, (2, 1)),
        ((1, 1), LEFT, (1, 0)),
        ((3, 3), DOWN, (4, 3)),
    ],
)
def test_moves(start, action, end):
    assert NEXT_POSITION[start[0] * 5 + start[1], action] == end[0] * 5 + end[1]


def test_an_observation_is_the_position_and_the_items():
    floor = Floor(np.arange(12)[None], copies=2)
    appears = np.zeros((12, 2), bool)
    appears[3, 0] = True  # the first cell of the bottom row
    floor.reset(appears)
    floor.positions[0] = [1 * SIZE + 2, 3 * SIZE + 4]
    expected = np.zeros((1, 2, SIZE * SIZE + 12), np.uint8)
    expected[0, 0, [7, SIZE * SIZE + 3]] = 1
    expected[0, 1, 19] = 1
    assert np.array_equal(floor.observations(), expected)
    assert np.array_equal(floor.observations([0]), expected)


def test_corners_are_never_entered():
    corners = {0, 4, 20, 24}
    reachable, new = {CENTRE}, {CENTRE}
    while new:
        new = {int(p) for position in new for p in NEXT_POSITION[position]} - reachable
        reachable |= new
    assert reachable == set(range(25)) - corners


def test_paths_lead_to_the_shelf_in_as_many_steps_as_stated():
    for position in set(range(25)) - {0, 4, 20, 24}:
        for shelf in range(12):
            at, steps = position, 0
            while SHELF_AT[at] != shelf:
                at, steps = NEXT_POSITION[at, FIRST_ACTION[at, shelf]], steps + 1
            assert steps == PATH_LENGTH[position, shelf]
            assert SHELF_AT[NEXT_POSITION[at, FIRST_ACTION[at, shelf]]] == shelf, "a robot on its target stays there"


@pytest.mark.parametrize("side", [1, 2, 4, 7])
def test_neighbouring_regions_share_three_cells(side):
    cells = shelf_cells(side)
    assert cells.shape == (side * side, 12)
    assert len(np.unique(cells)) == 12 * side * side - 3 * 2 * side * (side - 1)
    grid = cells.reshape(side, side, 12)
    bottom, top = [3, 4, 5], [0, 1, 2]
    right, left = [7, 9, 11], [6, 8, 10]
    assert np.array_equal(grid[:-1, :, bottom], grid[1:, :, top])
    assert np.array_equal(grid[:, :-1, right], grid[:, 1:, left])


def test_step_order_and_rewards():
    floor = Floor(np.arange(12)[None], copies=1)
    nothing = np.zeros((12, 1), bool)
    appears = nothing.copy()
    appears[1] = True  # the shelf above the centre, two steps away
    floor.reset(appears)
    assert floor.observations()[0, 0, 25:].tolist() == [0, 1] + [0] * 10
    old = nothing.copy()
    old[9] = True
    floor.step(np.array([[UP]]), old)
    assert floor.rewards(slice(None)) == 0
    floor.step(np.array([[UP]]), appears)
    assert floor.rewards(slice(None)) == 1.0, "the oldest item of the region"
    assert floor.observations()[0, 0, 26] == 1, "a new item may appear on the cell that has just been emptied"
    floor.step(np.array([[UP]]), nothing)
    assert floor.rewards(slice(None)) == pytest.approx(1 / 2), "one step old; the oldest is two steps old"
    assert floor.observations()[0, 0, 25:].sum() == 1
    floor.step(np.array([[UP]]), nothing)
    assert floor.rewards(slice(None)) == 0, "standing on an empty cell"


def test_an_item_collected_by_two_robots_pays_both():
    simulator = seeded(warehouse(4, item_probability=1.0, border="none").global_simulator(1), 1)
    simulator.reset()
    assert simulator.step(np.array([[RIGHT], [LEFT], [DOWN], [DOWN]])).rewards.sum() == 0
    rewards = simulator.step(np.array([[RIGHT], [LEFT], [DOWN], [DOWN]])).rewards
    assert rewards.ravel().tolist() == [1, 1, 1, 1]
    sources = simulator.influence_sources()[:, 0]
    assert sources[0].tolist() == [1, 3, 3, 3], "the right neighbour stands on the middle of the shared side"
    assert sources[1].tolist() == [3, 3, 1, 3], "and so does the left neighbour for the other"
    assert sources[2].tolist() == [3, 3, 3, 3], "robots that walk away from each other"


@pytest.mark.parametrize(("n_agents", "border"), [(4, "scripted"), (25, "scripted"), (9, "none")])
def test_local_simulator_replays_the_global_one_exactly(n_agents, border):
    """Actions, draws and influence sources of the GS, fed to the LS, give the same states and rewards."""
    copies, episodes = 5, 6
    domain = warehouse(n_agents, border=border)
    gs = seeded(domain.global_simulator(copies), copies)
    ls = seeded(domain.local_simulator(range(n_agents), copies), n_agents, seed=1)
    generator = np.random.default_rng(2)
    collected = 0.0
    for _ in range(episodes):
        observations = gs.reset()
        ls.take_draws(gs.draws())
        assert np.array_equal(ls.reset(), observations)
        for _ in range(domain.horizon):
            actions = generator.integers(4, size=(n_agents, copies))
            step = gs.step(actions)
            ls.take_draws(gs.draws())
            relived = ls.step(actions, gs.influence_sources())
            assert np.array_equal(relived.observations, step.observations)
            assert np.array_equal(relived.rewards, step.rewards)
            assert np.array_equal(ls.local_states(), gs.local_states())
            assert np.array_equal(ls.floor.items(), gs.floor.items(gs.learning)), "the items' ages, too"
            collected += step.rewards.sum()
    assert collected > 0.5 * n_agents * copies * episodes, "a replay in which nothing happens shows nothing"


def test_draws_that_were_handed_over_are_used_once():
    simulator = seeded(warehouse(1, item_probability=0.5).local_simulator([0], 3), 1)
    simulator.take_draws(np.zeros((1, 3, 12), bool))
    assert not simulator.reset()[..., 25:].any()
    assert simulator.reset()[..., 25:].any()


@pytest.mark.parametrize("n_agents", [1, 4, 9, 25])
def test_conforms_to_the_interface(n_agents):
    check_domain(warehouse(n_agents))


def test_items_appear_with_the_stated_probability():
    simulator = seeded(warehouse(1, item_probability=0.1).local_simulator([0], 2000), 1)
    counts = simulator.reset()[0, :, 25:].mean()
    assert counts == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 24000))


@pytest.mark.parametrize(
    ("n_agents", "controller", "expected", "tolerance"),
    [(4, "closest", 13.1, 0.25), (25, "closest", 13.1, 0.25), (4, None, 1.5, 0.15), (25, None, 1.95, 0.15)],
)
def test_reference_returns(n_agents, controller, expected, tolerance):
    """Hand-coded and random robots on the GS earn what the published simulator gives them."""
    returns = evaluate_controller(warehouse(n_agents), controller, episodes=400, seed=0)
    assert returns.mean_return == pytest.approx(expected, abs=tolerance)


def test_oldest_item_rule_earns_as_much():
    returns = evaluate_controller(warehouse(4), "oldest", episodes=400, seed=0)
    assert returns.mean_return == pytest.approx(13.1, abs=0.25)


@pytest.mark.parametrize(("rule", "shelf"), [("closest", 11), ("oldest", 0)])
def test_handcoded_robots_choose_the_closest_or_the_oldest_item(rule, shelf):
    """At row 3, column 3, with an old item far away, a new one beside it, and another in between."""
    items = np.full((1, 12, 1), NEVER, np.int16)
    items[0, [0, 7, 11], 0] = [2, 5, 9]  # when they appeared, at (0, 1), (1, 4) and (3, 4)
    robots = HandcodedRobots(rule, 1, 1)
    position = np.array([[3 * SIZE + 3]])
    action = robots.act(position, items, np.zeros((1, 1)))
    assert robots._targets.tolist() == [[shelf]]
    assert PATH_LENGTH[NEXT_POSITION[position, action], shelf] == PATH_LENGTH[position, shelf] - 1


def test_handcoded_robots_forget_their_targets_with_the_episode_and_with_the_last_item():
    at_centre, noise = np.array([[CENTRE]]), np.zeros((1, 1))
    none = np.full((1, 12, 1), NEVER, np.int16)
    top, both = none.copy(), none.copy()
    top[0, 1] = 3
    both[0, [0, 1, 4], 0] = [3, 3, 1]
    for forget in (lambda robots: robots.reset(), lambda robots: robots.act(at_centre, none, noise)):
        robots = HandcodedRobots("oldest", 1, 1)
        robots.act(at_centre, top, noise)
        assert robots._targets.tolist() == [[1]]
        forget(robots)
        robots.act(at_centre, both, noise)
        assert robots._targets.tolist() == [[4]], "the oldest of those that are there now"
    with pytest.raises(ValueError, match=r"rule 'nearest' .* closest, oldest"):
        HandcodedRobots("nearest", 1, 1)


def test_handcoded_robot_keeps_its_target_while_it_exists():
    robots = HandcodedRobots("closest", 1, 1)
    items = np.full((1, 12, 1), NEVER, np.int16)
    position, noise = np.array([[CENTRE]]), np.zeros((1, 1), np.float32)
    items[0, 1] = 0  # above
    assert robots.act(position, items, noise) == UP
    items[0, 4] = 1  # below, as far
    position = NEXT_POSITION[position, DOWN]  # pushed towards the new one
    assert robots.act(position, items, noise) == UP
    items[0, 1] = NEVER
    assert robots.act(position, items, noise) == DOWN


def test_streams_of_other_copies_do_not_matter():
    domain = warehouse(4)
    many = domain.global_simulator(3, "closest")
    many.seed(streams(0, "evaluate/simulator", [0, 1, 2]))
    one = domain.global_simulator(1, "closest")
    one.seed(streams(0, "evaluate/simulator", [1]))
    assert np.array_equal(many.reset()[:, 1], one.reset()[:, 0])
    for _ in range(50):
        assert np.array_equal(many.step(None).observations[:, 1], one.step(None).observations[:, 0])


@pytest.mark.parametrize(("n_agents", "nearest"), [(26, "25 or 36"), (2, "1 or 4"), (0, "1"), (-3, "1")])
def test_number_of_agents_must_make_a_grid(n_agents, nearest):
    with pytest.raises(ValueError, match=f"{n_agents} agents make no m×m grid; the nearest that do: {nearest}"):
        grid_side(n_agents)


def test_shelves_are_numbered_as_in_the_observation():
    assert [tuple(s) for s in SHELVES[:6]] == [(0, 1), (0, 2), (0, 3), (4, 1), (4, 2), (4, 3)]
    assert [tuple(s) for s in SHELVES[6:]] == [(1, 0), (1, 4), (2, 0), (2, 4), (3, 0), (3, 4)]
