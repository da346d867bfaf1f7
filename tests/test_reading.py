"""A run directory as the offline tools see it."""

import json
import os
import time

import numpy as np
import pytest
import yaml

from dials_mpi.analysis.reading import open_run
from dials_mpi.errors import UserError
from dials_mpi.runs.metrics import Metrics


@pytest.fixture
def folder(tmp_path):
    """A run of two agents with one reference, two evaluations and an AIP training."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"agents": 2, "mode": "dials"}))
    (tmp_path / "run.json").write_text(json.dumps({"state": "running"}))
    metrics = Metrics(tmp_path)
    metrics.write(0, "reference", 1.0, controller="oldest-item", mean_return=13.0, standard_error=0.1)
    for step, value in ((0, 1.5), (400, 2.5)):
        per_agent = {"mean_return": [value, value + 1]}
        metrics.write(step, "evaluate", step / 100, mean_return=value, standard_error=0.2, per_agent=per_agent)
    metrics.close()
    return tmp_path


def test_figures_come_as_series(folder):
    run = open_run(folder)
    series = run.series("evaluate", "mean_return")
    assert series.steps.tolist() == [0, 400]
    assert series.seconds.tolist() == [0.0, 4.0]
    assert series.values.tolist() == [1.5, 2.5]
    assert run.series("evaluate", "mean_return", per_agent=True).values.tolist() == [[1.5, 2.5], [2.5, 3.5]]
    assert run.references == {"oldest-item": (13.0, 0.1)}
    assert len(run.series("aip", "cross_entropy_after")) == 0
    assert run.series("aip", "cross_entropy_after", per_agent=True).values.shape == (0, 2)


def test_a_run_that_is_still_writing_can_be_read(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 800, "phase": "eval')
    run = open_run(folder)
    assert len(run.series("evaluate", "mean_return")) == 2
    assert run.state == "running"


def test_a_run_that_says_it_runs_but_is_silent_has_died(folder):
    for file in folder.iterdir():
        os.utime(file, (time.time() - 7200,) * 2)
    assert open_run(folder).state == "died"


def test_what_is_put_beside_a_silent_run_does_not_bring_it_to_life(folder):
    for file in folder.iterdir():
        os.utime(file, (time.time() - 7200,) * 2)
    (folder / "report.html").write_text("")
    assert open_run(folder).state == "died"


@pytest.mark.parametrize(
    ("phase", "key", "per_agent"), [("evaluate", "regret", False), ("reference", "mean_return", True)]
)
def test_a_figure_that_records_do_not_have_is_named(folder, phase, key, per_agent):
    with pytest.raises(UserError, match=f"a record of phase '{phase}' has no '{key}'"):
        open_run(folder).series(phase, key, per_agent)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, r"is no run directory: it has no config\.yaml"),
        ("config.yaml", "agents: [", r"config\.yaml: cannot be read"),
        ("config.yaml", "something: else", r"config\.yaml: cannot be read"),
        ("config.yaml", "agents: four", r"config\.yaml: cannot be read"),
        ("run.json", "{", r"run\.json: cannot be read"),
        ("run.json", "[]", r"run\.json: cannot be read \(no facts of a run\)"),
        ("metrics.jsonl", "{\n{}\n", r"metrics\.jsonl: cannot be read \(line 1: "),
        ("metrics.jsonl", '{"step": 0, "phase": "aip"}\n[1]\n', r"metrics\.jsonl: cannot be read \(line 2: no record"),
        ("metrics.jsonl", '{"step": 0}\n', r"line 1: no record with step and phase"),
        ("timing.jsonl", "x\n", r"timing\.jsonl: cannot be read \(line 1: "),
        ("timing.jsonl", '{"step": 0, "phase": "aip"}\n', r"timing\.jsonl: .*no record with seconds"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(folder, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_run(folder)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no such directory"):
        open_run(tmp_path / "none")


def test_float32_figures_keep_their_digits(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write(0, "aip", 0.0, value=np.float32(0.1))
    metrics.close()
    assert '"value": 0.1}' in (tmp_path / "metrics.jsonl").read_text()
