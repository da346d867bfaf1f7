"""Event files, read by TensorBoard's own reader."""

import pytest
from conftest import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_command_line import one_line

from dials_mpi.analysis.reading import open_run
from dials_mpi.runs.tensorboard import TensorBoard


def scalars(events):
    """(step, value) pairs by tag."""
    events.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def expected(run):
    """The same from metrics.jsonl."""
    found = {}
    for record in open_run(run).records:
        prefix = "/".join(record[key] for key in ("phase", "controller") if key in record)
        for key in record.keys() - {"step", "phase", "controller", "seconds", "round", "episodes", "per_agent"}:
            found.setdefault(f"{prefix}/{key}", []).append((record["step"], record[key]))
    return found


def test_event_files_hold_what_the_metrics_hold_under_stable_tags(small_run):
    events = EventAccumulator(str(small_run / "tensorboard"))
    assert scalars(events) == expected(small_run)
    assert set(scalars(events)) >= {
        "evaluate/mean_return",
        "evaluate/standard_error",
        "evaluate/share_above_reference",
        "reference/closest/mean_return",
        "aip/cross_entropy_before",
        "aip/cross_entropy_after",
        "learn/entropy",
        "learn/explained_variance",
    }
    times = [event.wall_time for event in events.Scalars("evaluate/mean_return")]
    seconds = open_run(small_run).series("evaluate", "mean_return").seconds
    assert times[-1] - times[0] == pytest.approx(seconds[-1] - seconds[0], abs=0.002)


def test_a_resumed_run_has_nothing_twice_even_for_who_has_read_the_old_files(command_line):
    """Stopped twice: on logging from the start, and with logging switched on later."""
    for name, logs_first in (("early", True), ("late", False)):
        arguments = ["--env=warehouse", "--mode=untrained-dials", f"--name={name}", *SMALL]
        arguments += ["--set=log.tensorboard=true"] if logs_first else []
        stop = {"DIALS_MPI_FAULT": "boundary:2:USR1"}
        result = command_line(*arguments, "--set=checkpoint.boundary_seconds=0", **stop)
        assert result.returncode == 75, result.stderr
        run = command_line.folder / "runs" / name
        watching = EventAccumulator(str(run / "tensorboard"))
        seen = {}
        if logs_first:
            seen = scalars(watching)
            assert seen
        result = command_line(f"--resume=runs/{name}", "--set=log.tensorboard=true")
        assert result.returncode == 0, result.stderr
        assert scalars(EventAccumulator(str(run / "tensorboard"))) == expected(run)
        assert scalars(watching) == expected(run)
        assert len(expected(run)["learn/entropy"]) > len(seen.get("learn/entropy", ()))


def test_records_after_the_checkpoint_are_forgotten(tmp_path):
    first = TensorBoard(tmp_path)
    for step in (0, 400, 800):
        first.write(step, "evaluate", step / 100, mean_return=float(step), episodes=2, per_agent={"mean_return": [1.0]})
    first.close()
    watching = EventAccumulator(str(tmp_path))
    assert [step for step, _ in scalars(watching)["evaluate/mean_return"]] == [0, 400, 800]
    past = [{"step": step, "phase": "evaluate", "seconds": 0.0, "mean_return": float(step)} for step in (0, 400)]
    second = TensorBoard(tmp_path, 4.0, past)
    second.write(800, "evaluate", 9.0, mean_return=1.5)
    second.close()
    for events in (watching, EventAccumulator(str(tmp_path))):
        assert scalars(events) == {"evaluate/mean_return": [(0, 0.0), (400, 400.0), (800, 1.5)]}


def test_without_the_package_the_run_does_not_start(command_line):
    shadow = command_line.folder / "shadow" / "tensorboard"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorboard'\")")
    command_line.environment["PYTHONPATH"] = f"{shadow.parent}:{command_line.environment['PYTHONPATH']}"
    result = command_line("--env=warehouse", "--name=r", "--set=log.tensorboard=true", *SMALL)
    assert result.returncode == 2
    assert one_line(result) == (
        "dials_mpi: log.tensorboard: No module named 'tensorboard'; pip install 'dials_mpi[tensorboard]', or leave it "
        "false"
    )
    assert not (command_line.folder / "runs").exists()
