"""tools/influence.py on real runs."""

import csv
import os
import shutil
import subprocess
import sys

import h5py
import pytest
from conftest import SMALL, SMALL_TRAFFIC, CommandLine, of_mode, tool, without_packages

from dials_mpi.analysis.reading import open_run
from dials_mpi.influence.analysis import predictor_distance
from dials_mpi.influence.dataset import read_rounds
from dials_mpi.influence.predictor import InfluencePredictor
from dials_mpi.influence.settings import PredictorSettings
from dials_mpi.simulators.interface import Influence


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`warehouse`, `traffic` and `actions`, two rounds each, and `gs`, which has none."""
    folder = tmp_path_factory.mktemp("influence")
    command_line = CommandLine(folder)
    for arguments in (
        ["--name=warehouse", "--env=warehouse", *SMALL],
        ["--name=traffic", "--env=traffic", *SMALL_TRAFFIC],
        ["--name=actions", "--env=warehouse", "--set=predictor.sees_actions=true", *SMALL],
        ["--name=gs", "--env=warehouse", "--mode=gs", *of_mode("gs", SMALL), "--steps=400"],
    ):
        result = command_line(*arguments)
        assert result.returncode == 0, result.stderr
    return folder / "runs"


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("domain", ["warehouse", "traffic"])
def test_table_heat_map_and_csv(runs, tmp_path, domain):
    result = tool("influence.py", runs / domain, "--csv", tmp_path / "csv", "--figure", tmp_path / "map.png")
    assert result.returncode == 0, result.stderr
    agents = rows(tmp_path / "csv" / "agents.csv")
    assert [(row["agent"], row["round"]) for row in agents] == [(str(a), str(r)) for a in range(4) for r in range(2)]
    assert all((row["ξ"] == "") == (row["round"] == "0") for row in agents), "nothing to compare the first round with"
    assert all(0 <= float(row["ξ"]) <= 2 for row in agents if row["ξ"])
    for row in agents:
        assert float(row["gain"]) == pytest.approx(float(row["entropy"]) - float(row["after"]), abs=1e-4)
    sources = rows(tmp_path / "csv" / "sources.csv")
    assert len(sources) == 4 * 2 * 4
    for row in sources:
        assert sum(float(value) for key, value in row.items() if key.startswith("share_")) == pytest.approx(1, abs=1e-4)
    assert "Lemma 2" in result.stdout
    assert "Theorem 1" in result.stdout
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["warehouse", "actions"])
def test_the_drift_of_a_predictor_is_what_its_rounds_say_of_the_same_histories_and_actions(runs, tmp_path, name):
    result = tool("influence.py", runs / name, "--csv", tmp_path, "--histories", "3")
    assert result.returncode == 0, result.stderr
    found = {(row["agent"], row["round"]): row["ξ"] for row in rows(tmp_path / "agents.csv")}
    settings = PredictorSettings(**open_run(runs / name).configuration["predictor"])
    for agent in range(4):
        then, now = read_rounds(runs / name / "influence" / f"agent_{agent:04d}.h5")
        n_actions = {"warehouse": 0, "actions": 4}[name]
        assert now.attributes.get("n_actions", 0) == n_actions
        seen = now.history[None, :3], now.actions[None, :3]
        influence = Influence(4, int(now.attributes["influence_classes"]), now.history.shape[-1])
        one, other = (
            InfluencePredictor.from_parameters(round_.predictor[None], influence, settings, n_actions)
            for round_ in (then, now)
        )
        distance = predictor_distance(one.probabilities(*seen), other.probabilities(*seen)).mean()
        assert float(found[str(agent), "1"]) == pytest.approx(distance, rel=1e-4)


def test_without_torch_and_mpi_only_the_predictors_distance_is_missing(runs, tmp_path):
    path = without_packages(tmp_path, "torch", "mpi4py")
    result = tool("influence.py", runs / "warehouse", "--figure", tmp_path / "map.png", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "influence: ξ is left out: torch is not there\n"
    assert "Lemma 2" not in result.stdout


def test_a_damaged_file_is_named_and_the_rest_analysed(runs, tmp_path):
    run = tmp_path / "damaged"
    shutil.copytree(runs / "warehouse", run)
    (run / "influence" / "agent_0002.h5").write_bytes(b"no HDF5")
    result = tool("influence.py", run, "--csv", tmp_path)
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1
    assert "left out: " in result.stderr
    assert "agent_0002.h5: damaged, or no influence dataset" in result.stderr
    assert {row["agent"] for row in rows(tmp_path / "agents.csv")} == {"0", "1", "3"}
    with h5py.File(run / "influence" / "agent_0001.h5", "a") as file:
        del file["round_0001"].attrs["influence_classes"]
    result = tool("influence.py", run, "--csv", tmp_path)
    assert result.returncode == 0
    assert "agent_0001.h5: no influence dataset of a run (KeyError: 'influence_classes')" in result.stderr
    assert {row["agent"] for row in rows(tmp_path / "agents.csv")} == {"0", "3"}


def test_what_cannot_be_analysed_is_one_line(runs, tmp_path):
    for path, message in (
        (tmp_path, f"influence: {tmp_path} is no run directory: it has no config.yaml\n"),
        (runs / "gs", f"influence: {runs / 'gs'}: no influence datasets (mode gs; only dials collects them)\n"),
    ):
        result = tool("influence.py", path)
        assert result.returncode == 2
        assert result.stderr == message


def test_datasets_open_without_this_package(runs, tmp_path):
    """In another Python that has h5py alone, and in HDF5's own tool where that is installed."""
    file = runs / "warehouse" / "influence" / "agent_0000.h5"
    script = (
        "import h5py, sys; f = h5py.File(sys.argv[1]); g = f['round_0001']; "
        "print(dict(f.attrs)['schema'], g['history'].shape, g['history'].attrs['axes'], g.attrs['step'])"
    )
    path = {"PYTHONPATH": without_packages(tmp_path, "torch", "mpi4py", "dials_mpi").partition(os.pathsep)[0]}
    result = subprocess.run(
        [sys.executable, "-c", script, file], env={**os.environ, **path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout == "dials_mpi influence dataset (400, 37) step, local state bit 800\n", result.stderr
    h5dump = shutil.which("h5dump")
    if h5dump:
        result = subprocess.run([h5dump, "-d", "round_0001/influence_sources", file], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "( 400, 4 )" in result.stdout
