"""What pictures show, and the tool that makes them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from dials_mpi.simulators.platoon import PlatoonSettings
from dials_mpi.simulators.registry import make_domain
from dials_mpi.simulators.traffic import TrafficSettings
from dials_mpi.simulators.warehouse import WarehouseSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import render


def drawn(domain, simulator):
    figure = Figure(figsize=(5, 5), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    domain.draw(simulator, axes)
    figure.canvas.draw()
    return axes, np.asarray(figure.canvas.buffer_rgba())[..., :3]


def pixel(axes, picture, x, y):
    column, row = axes.transData.transform((x, y))
    return picture[picture.shape[0] - 1 - int(row), int(column)] / 255


def test_vehicles_are_where_sumo_has_them_in_the_colour_of_their_speed():
    domain = make_domain("traffic", 4, TrafficSettings())
    with domain.global_simulator(2) as gs:
        gs.seed([np.random.default_rng(i) for i in range(2)])
        gs.reset()
        for t in range(40):
            gs.step(np.full((4, 2), int(t == 20)))
        axes, picture = drawn(domain, gs)
        colours, _ = domain.draw(gs, axes)
        poses = gs.intersections.sumo.poses()
    here = poses[(poses[:, 0] > 0) & (poses[:, 0] < 300)]  # copy 0; the other one is drawn beside it, out of sight
    assert 8 < len(here) < len(poses)
    vehicles = next(artist for artist in axes.collections if isinstance(artist, PolyCollection))
    assert len(vehicles.get_paths()) == len(here)
    right = 0
    for x, y, heading, speed in here:
        back = np.array([x, y]) - 2.5 * np.array([np.sin(np.radians(heading)), np.cos(np.radians(heading))])
        right += np.allclose(pixel(axes, picture, *back), colours.to_rgba(3.6 * speed)[:3], atol=0.03)
    assert right >= 0.8 * len(here), "some lie under a light"
    # North and south had green first and were switched 20 s ago.
    x, y = 100, -100
    assert np.allclose(pixel(axes, picture, x - 1.6, y + 9.4), (0.843, 0.098, 0.110), atol=0.02), "red from the north"
    assert np.allclose(pixel(axes, picture, x + 9.4, y + 1.6), (0.0, 0.651, 0.318), atol=0.02), "green from the east"


def test_robots_and_items_are_where_the_floor_has_them():
    domain = make_domain("warehouse", 4, WarehouseSettings(item_probability=0.1))
    with domain.global_simulator(1) as gs:
        gs.seed([np.random.default_rng(0)])
        gs.reset()
        for _ in range(10):
            gs.step(np.full((4, 1), 2))
        axes, picture = drawn(domain, gs)
        floor = gs.floor
        for region in range(16):
            row, column = divmod(region, 4)
            i, j = divmod(int(floor.positions[region, 0]), 5)
            colour = pixel(axes, picture, 4 * column + j - 0.2, 4 * row + i)
            assert (colour[2] > colour[0] + 0.3) == (region in gs.learning), "blue robots learn, grey ones do not"
        items = (floor.appeared[:-1, 0] != np.iinfo(np.int16).max).sum()
        squares = [patch for patch in axes.patches if patch.get_width() == 0.56]
        assert len(squares) == items > 20


def test_a_platoon_is_drawn_with_gaps_to_scale_and_the_colour_of_speed():
    domain = make_domain("platoon", 3, PlatoonSettings())
    with domain.global_simulator(2) as gs:
        gs.seed([np.random.default_rng(i) for i in range(2)])
        gs.reset()
        for _ in range(60):
            gs.step(np.array([[1, 3], [0, 3], [0, 3]]))
        axes, picture = drawn(domain, gs)
        colours, label = domain.draw(gs, axes)
    assert label == "speed (m/s)"
    front = 0.0
    for row, speed in enumerate([15.0, *gs.speed[:, 0]]):
        front -= (gs.headway[row - 1, 0] + 5) if row else 0
        assert np.allclose(pixel(axes, picture, front - 2.5, row), colours.to_rgba(speed)[:3], atol=0.03)
    assert gs.speed[0, 0] > 16
    assert axes.get_title().startswith("after 6.0 s;")


def run_tool(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["render.py", *map(str, arguments)])
    try:
        code = render.main()
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize("env", ["warehouse", "traffic"])
@pytest.mark.parametrize("simulator", ["gs", "ls"])
def test_the_tool_makes_stills_and_films(monkeypatch, capsys, tmp_path, env, simulator):
    controller = {"warehouse": "closest", "traffic": "actuated"}[env]
    shared = ["--env", env, "--simulator", simulator, "--controller", controller]
    assert run_tool(monkeypatch, capsys, *shared, "--at", 30, "--out", tmp_path / "a.png")[0] == 0
    assert Image.open(tmp_path / "a.png").size == (640, 560)
    film = tmp_path / "a.gif"
    assert run_tool(monkeypatch, capsys, *shared, "--first", 20, "--steps", 4, "--out", film)[0] == 0
    assert Image.open(film).n_frames == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.png"], "give a run directory or --env"),
        (["nowhere", "--out", "a.png"], "nowhere/config.yaml: cannot be read: No such file"),
        (["--env", "warehouse", "--out", "a.jpg"], "a.jpg: its name must end with .png or .gif"),
        (["--env", "warehouse", "--out", "none/a.png"], "none/a.png: cannot be written (No such file or directory)"),
        (
            ["--env", "warehouse", "--out", "a.png", "--at", "101"],
            "step 101: an episode of this domain ends after",
        ),
        (["--env", "warehouse", "--out", "a.gif", "--at", "7"], "--at: of no use for a .gif"),
        (["--env", "warehouse", "--out", "a.png", "--agent", "4"], "--agent: 4 is none of 0 to 3"),
        (["--env", "warehouse", "--out", "a.png", "--controller", "x"], "'x' is none of random, closest, oldest"),
        (["--env", "warehouse", "--out", "a.gif", "--fps", "0"], "argument --fps: 0 is less than 1"),
    ],
)
def test_bad_arguments_of_the_tool_are_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, error = run_tool(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in error.splitlines()[-1]
