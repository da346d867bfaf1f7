"""A method that is one file and one entry in the registry has all that the built-in ones have."""

import json

import bandit
import numpy as np
import pytest
import yaml
from conftest import TESTS, run_here

from dials_mpi import cli
from dials_mpi.__main__ import main
from dials_mpi.algorithms.registry import METHODS, Method
from dials_mpi.analysis import results
from dials_mpi.analysis.equality import differences
from dials_mpi.analysis.reading import open_run
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.runs.policies import load_policies

ARGUMENTS = ["--env=ring:Ring", "--agents=3", "--mode=bandit", "--steps=400", "--set=evaluation.interval=200"]


@pytest.fixture(scope="module", autouse=True)
def _registered():
    METHODS["bandit"] = bandit.METHOD
    yield
    del METHODS["bandit"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_here(tmp_path_factory.mktemp("bandit"), *ARGUMENTS)


def test_it_runs_is_evaluated_and_publishes_what_its_agents_act_by(run):
    records = read_metrics(run)
    assert [r["step"] for r in records if r["phase"] == "evaluate"] == [0, 200, 400]
    learnt = [record for record in records if record["phase"] == "learn"]
    assert [record["step"] for record in learnt] == [200, 400]
    step, rows = load_policies(run / "policies.npz")
    assert (step, list(rows)) == (400, ["payments"])
    sums, counts = np.split(rows["payments"], 2, axis=1)
    assert (counts.sum(axis=1) == 400).all(), "every step of every episode, once"
    best = np.array(learnt[-1]["per_agent"]["best_value"])  # the mean over the segment
    assert np.abs(best - (sums / counts).max(axis=1)).max() < 0.1
    with np.load(run / "policies.npz") as file:
        assert file["payments/names"].tolist() == ["sums", "counts"]


def test_its_sections_are_its_own(run, capsys):
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["bandit"] == {"episodes": 4, "exploration": 0.2}
    assert not {"policy", "ppo", "predictor", "dataset"} & stored.keys()
    ppo, own = "dials or untrained-dials or gs", "bandit"
    for mode, setting, owner in (("bandit", "ppo.copies=3", ppo), ("gs", "bandit.episodes=2", own)):
        assert main(["--env=ring:Ring", f"--mode={mode}", f"--set={setting}"]) == 2
        section = setting.partition(".")[0]
        line = f"dials_mpi: {section}: belongs to mode {owner}, not to {mode} (--set {setting}); leave it out\n"
        assert capsys.readouterr().err == line


def test_it_is_offered(capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["--help"])
    assert "bandit: every agent plays what has paid best so far" in " ".join(capsys.readouterr().out.split())


def test_it_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch):
    from mpi4py import MPI

    from dials_mpi.run import run as start
    from dials_mpi.runs import faults

    faults._seen.clear()
    monkeypatch.setenv("DIALS_MPI_FAULT", "boundary:3:USR1")
    arguments = [*ARGUMENTS, "--set=checkpoint.boundary_seconds=0"]
    parsed = cli.parser().parse_args([*arguments, f"--runs={tmp_path}", "--name=parts"])
    assert start(MPI.COMM_SELF, parsed) == 75
    monkeypatch.delenv("DIALS_MPI_FAULT")
    parsed = cli.parser().parse_args([f"--resume={tmp_path / 'parts'}", "--env=ring:Ring"])
    assert start(MPI.COMM_SELF, parsed) == 0
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["resumed"][0]["step"] == 120
    assert differences(run, tmp_path / "parts") == []


def test_it_is_evaluated_elsewhere_and_read_like_any_other(run, tmp_path, capsys):
    out = tmp_path / "more.json"
    assert main(["evaluate", str(run), "--env=ring:Ring", "--agents=6", "--episodes=3", f"--out={out}"]) == 0
    assert json.loads(out.read_text())["agents"] == 6
    groups, _ = results.group_runs([open_run(run)])
    assert [group.label for group in groups] == ["Bandit"]


def test_a_dry_run_says_that_its_costs_are_not_known(capsys, tmp_path, monkeypatch):
    from mpi4py import MPI

    from dials_mpi.run import run as start

    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dials_mpi.scaling.estimate.check_in_time", lambda *_: None)
    assert start(MPI.COMM_SELF, cli.parser().parse_args([*ARGUMENTS, "--dry-run"])) == 0
    assert "memory and time: nothing is known of what mode bandit costs\n" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [*METHODS, "bandit"])
def test_every_entry_keeps_what_the_registry_promises(mode):
    method = METHODS[mode]
    assert callable(method.load().train)
    assert isinstance(method, Method)
    assert method.rounds is None or "dataset" in method.sections
    named = [*method.unused, *([method.rounds] if method.rounds else [])]
    assert {setting.partition(".")[0] for setting in named} <= method.sections.keys()
