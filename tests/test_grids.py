"""Where agents stand and who is near whom: offline tools say and draw it right on grids that are not square, too."""

import csv
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SMALL_TRAFFIC, TESTS, CommandLine, tool
from ring import Ring

import dials_mpi
from dials_mpi.analysis import figures, results
from dials_mpi.analysis.reading import open_run
from dials_mpi.errors import UserError
from dials_mpi.runs.metrics import Metrics
from dials_mpi.simulators.grid import places
from dials_mpi.simulators.interface import DomainSettings
from dials_mpi.simulators.registry import domain_class, make_domain

sys.path.insert(0, str(TESTS.parent / "tools"))

import influence
import report


@pytest.fixture(scope="module")
def lights(tmp_path_factory) -> Path:
    """A run of two rows of three traffic lights: agents 0 to 2 in the north, 3 to 5 in the south."""
    command_line = CommandLine(tmp_path_factory.mktemp("lights"))
    shape = ["--agents=6", "--set=domain.rows=2", "--set=domain.columns=3"]
    outcome = command_line("--env=traffic", "--name=run", *SMALL_TRAFFIC, *shape)
    assert outcome.returncode == 0, outcome.stderr
    return command_line.folder / "runs" / "run"


def squares(folder: Path, shape: tuple[int, int]) -> Path:
    """A run in which agent i earns i², and its AIP comes to a cross-entropy of i² nats."""
    folder.mkdir()
    n = shape[0] * shape[1]
    settings = {
        "env": "own:Grid",
        "agents": n,
        "mode": "dials",
        "seed": 0,
        "steps": 400,
        "predictor": {"interval": 400},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "run.json").write_text(json.dumps({"state": "finished", "grid_shape": list(shape)}))
    values = [float(i**2) for i in range(n)]
    metrics = Metrics(folder)
    pair = {"cross_entropy_before": values, "cross_entropy_after": values}
    metrics.write(0, "aip", 1.0, round=0, per_agent=pair, **{key: np.mean(values) for key in pair})
    metrics.write(
        0, "evaluate", 2.0, mean_return=np.mean(values), standard_error=0.1, per_agent={"mean_return": values}
    )
    metrics.close()
    return folder


def maps(figure) -> dict[str, list]:
    """What is drawn in each heat map of a figure, by its title, and that the numbers on it stand in their cells."""
    found = {}
    for axes in figure.axes:
        for image in axes.get_images():
            table = found[axes.get_title()] = image.get_array().tolist()
            for text in axes.texts:
                column, row = map(int, text.get_position())
                assert float(text.get_text()) == pytest.approx(table[row][column], rel=0.01, abs=0.006)
    return found


def three_a_row(values: list[float]) -> list:
    return [pytest.approx(values[:3], abs=1e-5), pytest.approx(values[3:], abs=1e-5)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3), ["corner edge corner", "corner edge corner"]),
        ((3, 2), ["corner corner", "edge edge", "corner corner"]),
        ((3, 4), ["corner edge edge corner", "edge inner inner edge", "corner edge edge corner"]),
        ((3, 3), ["corner edge corner", "edge inner edge", "corner edge corner"]),
        ((2, 2), ["corner corner", "corner corner"]),
        ((1, 4), ["corner edge edge corner"]),
        ((1, 1), ["corner"]),
    ],
)
def test_every_place_of_a_grid_is_a_corner_an_edge_or_an_inner_place(shape, expected):
    assert places(shape).reshape(shape).tolist() == [row.split() for row in expected]


@pytest.mark.parametrize(
    ("agents", "domain", "facts", "expected"),
    [
        (6, {"rows": 3, "columns": 2}, {"grid_shape": [2, 3]}, (2, 3)),
        (6, None, {"grid_shape": [3, 2]}, (3, 2)),
        (4, {"rows": None, "columns": None}, {"grid_shape": [1, 4]}, (1, 4)),
        (6, None, {"ranks": 2, "resumed": [{"ranks": 3}, {"grid_shape": [2, 3]}]}, (2, 3)),  # by a version that says it
        # Versions that did not.
        (6, {"rows": 2, "columns": 3, "horizon": 50}, {}, (2, 3)),
        (9, {"rows": None, "columns": None}, {}, (3, 3)),
        (9, {"rows": 2, "columns": 3}, {}, (3, 3)),  # a user's own domain, with whatever it calls so
        (9, {}, {}, (3, 3)),
        (9, None, {}, (3, 3)),
        (7, {}, {}, (1, 7)),
        (1, {}, {}, (1, 1)),
    ],
)
def test_a_run_says_its_grid_or_it_is_told_from_the_configuration(tmp_path, agents, domain, facts, expected):
    settings = {"agents": agents} if domain is None else {"agents": agents, "domain": domain}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert open_run(tmp_path).grid_shape == expected


@pytest.mark.parametrize("shape", [[2, 2], [6], [2, 3, 1], [-2, -3], [1.5, 4], "23", None, {"rows": 2}])
def test_a_grid_of_other_agents_is_named(tmp_path, shape):
    (tmp_path / "config.yaml").write_text("agents: 6\n")
    (tmp_path / "run.json").write_text(json.dumps({"grid_shape": shape}))
    with pytest.raises(UserError, match=r"run\.json: grid_shape .* is no grid of 6 agents; restore it"):
        _ = open_run(tmp_path).grid_shape


def test_a_new_run_and_a_resumed_one_say_their_grid(lights, command_line):
    facts = json.loads((lights / "run.json").read_text())
    assert facts["grid_shape"] == [2, 3]
    assert command_line("--env=ring:Ring", "--agents=4", "--name=r", "--max-hours=0", *SMALL_RING).returncode == 75
    folder = command_line.folder / "runs" / "r"
    facts = json.loads((folder / "run.json").read_text())
    assert facts.pop("grid_shape") == [1, 4]
    (folder / "run.json").write_text(json.dumps(facts))  # as an older version leaves it
    assert open_run(folder).grid_shape == (2, 2), "a guess"
    assert command_line("--resume=runs/r", "--env=ring:Ring").returncode == 0
    assert open_run(folder).grid_shape == (1, 4)


SMALL_RING = [
    "--mode=gs", "--steps=400", "--set=ppo.rollout_length=10", "--set=ppo.sequence_length=1",
    "--set=ppo.minibatch_size=40", "--set=ppo.copies=4", "--set=policy.recurrent_size=0",
]  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (3, 4), (1, 5)])
def test_maps_by_agent_have_row_after_row_of_the_grid(tmp_path, shape):
    (group,), _ = results.group_runs(results.open_runs([squares(tmp_path / "run", shape)]))
    expected = [[float((row * shape[1] + column) ** 2) for column in range(shape[1])] for row in range(shape[0])]
    assert maps(figures.by_agent(group)) == {"AIPs at 0,\nafter training": expected, "mean return\nat 0": expected}


@pytest.mark.parametrize(
    ("shape", "border", "inner"),
    [
        # 0² + … + 11² = 506. Inner: agents 5 and 6, that is 25 + 36 = 61, and ten others.
        ((3, 4), "44.500", "30.500"),
        # Inner: agents 4 and 7, 16 + 49 = 65.
        ((4, 3), "44.100", "32.500"),
        ((2, 6), None, None),
        ((1, 12), None, None),
    ],
)
def test_the_report_tells_border_agents_from_inner_ones(tmp_path, shape, border, inner):
    folder = squares(tmp_path / "run", shape)
    assert report.main([str(folder), "--episode=none"]) == 0
    html = (folder / "report.html").read_text(encoding="utf-8")
    if border is None:
        assert "inner agents" not in html
    else:
        assert f"<td>{border}</td><td>{inner}</td>" in html
        assert f"border agents {border}, inner agents {inner}" in html


def test_what_datasets_say_is_told_and_drawn_by_place(lights, tmp_path):
    result = tool("influence.py", lights, "--csv", tmp_path, "--figure", tmp_path / "map.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "agents.csv").open(newline="") as stream:
        last = [row for row in csv.DictReader(stream) if row["round"] == "1"]
    assert [row["agent"] for row in last] == list("012345")
    entropies = [float(row["entropy"]) for row in last]
    assert len(set(entropies)) == 6, "or places could be mistaken for one another"

    _, table = result.stdout.split("round 1 by place in the grid, 2×3\n")
    lines = [line.split()[:3] for line in table.splitlines()[:2]]
    corners, edges = np.mean([entropies[i] for i in (0, 2, 3, 5)]), np.mean([entropies[i] for i in (1, 4)])
    assert [line[:2] for line in lines] == [["corner", "4"], ["edge", "2"]]
    assert [float(line[2]) for line in lines] == pytest.approx([corners, edges], abs=6e-4)

    run = open_run(lights)
    drawn = maps(influence.heat_maps(run, influence.read(run, 1, 0)))
    for title, column in (("entropy of the marginals\n(nats)", "entropy"), ("gain of the AIP\n(nats)", "gain")):
        assert drawn[title] == three_a_row([float(row[column]) for row in last])


def test_pictures_and_exported_policies_know_the_grid(lights, tmp_path):
    (group,), _ = results.group_runs(results.open_runs([lights]))
    _, returns = results.average_by_agent(group.runs, "evaluate", "mean_return")
    assert maps(figures.by_agent(group))["mean return\nat 1.6K"] == three_a_row(returns[-1].tolist())

    result = tool("export_policy.py", lights, "--agent=4", "--agent=2", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    cards = [json.loads((tmp_path / f"agent_000{agent}.json").read_text()) for agent in (2, 4)]
    assert [card["domain"]["grid"] for card in cards] == [[2, 3], [2, 3]]
    assert [card["agent"] for card in cards] == [{"id": 2, "row": 0, "column": 2}, {"id": 4, "row": 1, "column": 1}]

    for name, *arguments in (
        ("plot_learning.py", "--out", f"{tmp_path}/f/"),
        ("plot_scaling.py", "--out", f"{tmp_path}/f/"),
        ("report.py", "--episode=still", "--out", tmp_path / "r.html"),
    ):
        result = tool(name, lights, *arguments)
        assert (result.returncode, result.stderr) == (0, "")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "step 50 of an episode" in html
    assert "inner agents" not in html


def domain(name: str, n_agents: int, **settings):
    return make_domain(name, n_agents, domain_class(name).Settings(**settings))


@pytest.mark.parametrize(
    ("name", "n_agents", "settings", "edges"),
    [
        ("warehouse", 1, {}, []),
        ("warehouse", 4, {}, [(0, 1), (0, 2), (1, 3), (2, 3)]),
        (
            "traffic", 6, {"rows": 2, "columns": 3},
            [(0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (4, 5)],
        ),
        ("traffic", 3, {"rows": 1, "columns": 3}, [(0, 1), (1, 2)]),
    ],
)  # fmt: skip
def test_the_graph_of_a_grid_joins_those_side_by_side(name, n_agents, settings, edges):
    graph = domain(name, n_agents, **settings).graph
    assert list(graph) == list(range(n_agents))
    assert sorted(map(tuple, map(sorted, graph.edges))) == edges
    assert not graph.is_directed()


def test_a_domain_that_does_not_say_has_no_graph():
    assert Ring(5, DomainSettings()).graph is None


def test_nothing_loads_networkx_before_a_graph_is_asked_for():
    modules = [name for _, name, package in pkgutil.walk_packages(dials_mpi.__path__, "dials_mpi.") if not package]
    modules.remove("dials_mpi.__main__")
    script = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "from dials_mpi.simulators.registry import domain_class, make_domain\n"
        "domain = make_domain('warehouse', 4, domain_class('warehouse').Settings())\n"
        "domain.local_simulator([0], 1)\n"
        "assert 'networkx' not in sys.modules\n"
        "assert domain.graph and 'networkx' in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
