"""A run that is stopped and resumed ends as one that was not."""

import json
import re
import shutil
import signal
import time

import h5py
import numpy as np
import pytest
import yaml
from conftest import SMALL, SMALL_PLATOON, SMALL_TRAFFIC, of_mode, wait_for
from test_command_line import one_line

from dials_mpi.analysis.equality import differences
from dials_mpi.runs.checkpoint import FORMAT, _digest, all_checkpoints, newest_whole, read_manifest, step_of
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.runs.stopping import REASONS, StopFlag

RUNS = {
    "warehouse dials": ["--env=warehouse", *SMALL],
    "warehouse dials, actions seen": ["--env=warehouse", "--set=predictor.sees_actions=true", *SMALL],
    "warehouse dials, one policy for all": ["--env=warehouse", "--set=policy.shared=true", *SMALL],
    "warehouse untrained-dials": ["--env=warehouse", "--mode=untrained-dials", *SMALL],
    "warehouse gs": ["--env=warehouse", "--mode=gs", *of_mode("gs", SMALL)],
    "platoon dppo": ["--env=platoon", *SMALL_PLATOON, "--steps=400"],
    "masks untrained-dials": ["--env=menu:Menu", "--mode=untrained-dials", *SMALL],
    "early ends untrained-dials": ["--env=cliff:Cliff", "--mode=untrained-dials", *SMALL],
    "kinds gs": ["--env=menu:Mixed", "--mode=gs", *of_mode("gs", SMALL)],
    "continuous untrained-dials": ["--env=aim:Aim", "--mode=untrained-dials", *SMALL],
    "traffic dials": ["--env=traffic", *SMALL_TRAFFIC],
    "traffic untrained-dials": ["--env=traffic", "--mode=untrained-dials", *SMALL_TRAFFIC],
    "traffic gs": ["--env=traffic", "--mode=gs", *of_mode("gs", SMALL_TRAFFIC)],
}
TWO_UNITS = "--set=evaluation.interval=800"  # so that runs stop in the middle of segments, too
EVERY_UNIT = "--set=checkpoint.boundary_seconds=0"
AT_ONCE = "--max-hours=0"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_at_every_boundary_ends_as_one_that_was_not(command_line, name):
    runs = command_line.folder / "runs"
    # A collection has a boundary after each of its two or four batches: with one more, every start comes further.
    count = 1
    if " dials" in name:
        count = 5 if name.startswith("traffic") else 3
    stop = {"DIALS_MPI_FAULT": f"boundary:{count}:USR1"}
    named = [argument for argument in RUNS[name] if argument.startswith("--env=") and ":" in argument]
    assert command_line(*RUNS[name], TWO_UNITS, "--name=whole", "--seed=4").returncode == 0
    result = command_line(*RUNS[name], TWO_UNITS, "--name=parts", "--seed=4", EVERY_UNIT, **stop)
    stops = []
    while result.returncode == 75:
        facts = json.loads((runs / "parts" / "run.json").read_text())
        assert facts["state"] == "stopped"
        stops.append(newest_whole(runs / "parts" / "checkpoints")[1]["step"])
        assert stops == sorted(set(stops)), "every start comes further"
        result = command_line("--resume=runs/parts", *named, **stop)
    assert result.returncode == 0, result.stderr
    assert len(stops) >= 2
    facts = json.loads((runs / "parts" / "run.json").read_text())
    assert facts["state"] == "finished"
    assert len(facts["resumed"]) == len(stops)
    assert differences(runs / "whole", runs / "parts") == []


@pytest.mark.parametrize(("name", "ranks"), [("warehouse dials", 3), ("traffic dials", 0)])
def test_a_run_stopped_in_the_middle_of_aip_training_ends_as_one_that_was_not(command_line, name, ranks):
    runs = command_line.folder / "runs"
    arguments = [*RUNS[name], "--agents=4", "--set=predictor.epochs=6", "--seed=4"]
    whole = command_line(*arguments, "--name=whole", ranks=ranks)
    assert whole.returncode == 0, whole.stderr
    stop = {"DIALS_MPI_FAULT": "bit of work:3:USR1"}
    result = command_line(*arguments, EVERY_UNIT, "--name=parts", ranks=ranks, **stop)
    assert result.returncode == 75, result.stderr
    assert newest_whole(runs / "parts" / "checkpoints")[1]["step"] == 0, "the round is to be done again"
    assert "AIP training 0" not in result.stdout
    result = command_line("--resume=runs/parts", ranks=ranks, DIALS_MPI_FAULT="bit of work:12:USR1")
    assert result.returncode == 75, result.stderr
    assert newest_whole(runs / "parts" / "checkpoints")[1]["step"] > 0
    result = command_line("--resume=runs/parts", ranks=ranks)
    assert result.returncode == 0, result.stderr
    assert differences(runs / "whole", runs / "parts") == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, "STOP"])
def test_every_way_to_stop_leads_to_a_checkpoint_and_exit_code_75(command_line, how):
    steps = ["--steps=100000000", "--set=evaluation.interval=10000000", "--set=predictor.interval=10000000", EVERY_UNIT]
    process = command_line.start("--env=warehouse", "--agents=4", "--name=s", *SMALL, *steps)
    folder = command_line.folder / "runs" / "s"
    wait_for(lambda: (folder / "influence" / "agent_0003.h5").exists(), process)
    time.sleep(0.5)
    if how == "STOP":
        (folder / "STOP").touch()
    else:
        process.send_signal(how)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 75, error
    assert "go on with --resume" in out
    manifest = newest_whole(folder / "checkpoints")[1]
    assert manifest["step"] > 0
    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == "stopped"
    assert facts["stopped_by"] == ("the file STOP" if how == "STOP" else how.name)
    result = command_line("--resume=runs/s", AT_ONCE)
    assert result.returncode == 75, result.stderr
    assert f"resumed at step {manifest['step']:,}" in result.stdout
    assert not (folder / "STOP").exists()


@pytest.mark.parametrize("earlier", ["SIGTERM", "REQUEUE"])
def test_a_person_who_stops_a_run_is_heard_before_the_batch_system(tmp_path, earlier):
    """Who is asked twice before the next boundary stops for good."""
    with StopFlag() as flag:
        flag.watch(tmp_path)
        assert flag.reason == 0
        if earlier == "REQUEUE":
            (tmp_path / earlier).touch()
        else:
            signal.raise_signal(signal.Signals[earlier])
        assert REASONS[flag.reason - 1] in (earlier, f"the file {earlier}")
        (tmp_path / "STOP").touch()
        assert REASONS[flag.reason - 1] == "the file STOP"


def test_auto_leaves_a_run_alone_that_a_person_has_stopped(command_line, parts):
    (parts / "STOP").touch()
    before = {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    arguments = ["--env=warehouse", *SMALL, "--name=parts", "--resume=auto"]
    result = command_line(*arguments)
    assert result.returncode == 75
    assert result.stdout == "runs/parts/STOP: the run stays stopped; remove it to go on\n"
    assert before == {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    (parts / "STOP").unlink()
    assert command_line(*arguments).returncode == 0


def test_the_file_of_a_job_script_stops_a_run_and_is_taken_away_when_it_goes_on(command_line, parts):
    (parts / "STOP").touch()
    assert command_line("--resume=runs/parts", AT_ONCE).returncode == 75, "a person says so"
    assert not (parts / "STOP").exists()
    (parts / "REQUEUE").touch()
    assert command_line("--env=warehouse", *SMALL, "--name=parts", "--resume=auto").returncode == 0
    assert not (parts / "REQUEUE").exists()


def test_ranks_hear_of_a_stop_although_they_meet_seldom(command_line):
    """Rank 0 decides when the next meeting is from how fast the others are, and has nothing to do itself."""
    steps = ["--steps=100000000", "--set=evaluation.interval=10000000", "--set=predictor.interval=10000000"]
    seldom = "--set=checkpoint.boundary_seconds=1"
    process = command_line.start("--env=warehouse", "--agents=4", "--name=s", *SMALL, *steps, seldom, ranks=3)
    folder = command_line.folder / "runs" / "s"
    wait_for(lambda: (folder / "influence" / "agent_0003.h5").exists(), process)
    time.sleep(4)
    (folder / "STOP").touch()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert newest_whole(folder / "checkpoints")[1]["step"] > 2000


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run with two checkpoints, and where it would have ended."""
    from conftest import CommandLine

    folder = tmp_path_factory.mktemp("stopped")
    command_line = CommandLine(folder)
    assert command_line("--env=warehouse", *SMALL, "--name=whole").returncode == 0
    stop = {"DIALS_MPI_FAULT": "boundary:3:USR1"}
    assert command_line("--env=warehouse", *SMALL, "--name=parts", EVERY_UNIT, **stop).returncode == 75
    assert command_line("--resume=runs/parts", **stop).returncode == 75
    newest, older, *_ = all_checkpoints(folder / "runs" / "parts" / "checkpoints")
    assert step_of(newest) > step_of(older) > 0
    return folder


@pytest.fixture
def parts(stopped, command_line):
    shutil.copytree(stopped, command_line.folder, dirs_exist_ok=True)
    return command_line.folder / "runs" / "parts"


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", None], ids=["cut", "flipped", "empty", "missing"])
@pytest.mark.parametrize("file", ["rank_0000.npz", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(command_line, parts, damage, file):
    newest, older, *_ = all_checkpoints(parts / "checkpoints")
    if damage is None:
        (newest / file).unlink()
    else:
        (newest / file).write_bytes(damage((newest / file).read_bytes()))
    result = command_line("--resume=runs/parts")
    assert result.returncode == 0, result.stderr
    assert f"dials_mpi: checkpoint passed over: runs/parts/checkpoints/{newest.name}/{file}" in result.stderr
    assert f"resumed at step {step_of(older):,}" in result.stdout
    assert newest.with_name(f"{newest.name}.damaged").is_dir(), "for somebody to look at"
    assert differences(command_line.folder / "runs" / "whole", parts) == []


@pytest.mark.parametrize("left", ["damaged", "none"])
@pytest.mark.parametrize("state", ["stopped", "running", "failed", "finished"])
def test_without_a_whole_checkpoint_nothing_is_touched_and_the_advice_given_works(command_line, parts, left, state):
    for checkpoint in all_checkpoints(parts / "checkpoints"):
        if left == "damaged":
            (checkpoint / "manifest.json").write_text("{")
        else:
            shutil.rmtree(checkpoint)
    facts = json.loads((parts / "run.json").read_text())
    (parts / "run.json").write_text(json.dumps(facts | {"state": state}))
    before = {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    result = command_line("--resume=runs/parts")
    if left == "none" and state in ("running", "failed"):  # it ended before there was anything to go on from
        assert result.returncode == 0, result.stderr
        assert differences(command_line.folder / "runs" / "whole", parts) == []
        return
    assert result.returncode == 2
    what = {"damaged": "no whole checkpoint: runs/parts/checkpoints/step_", "none": "no checkpoint any more; "}[left]
    assert one_line(result).startswith(f"dials_mpi: --resume: runs/parts has {what}")
    assert {file: file.read_bytes() for file in parts.rglob("*") if file.is_file() and file.name != "lock"} == {
        file: content for file, content in before.items() if file.name != "lock"
    }
    advice = re.search(
        r"start a new run with (--config \S+), without --resume and under another --name$", one_line(result)
    )
    if state == "stopped":
        result = command_line(*advice[1].split(), "--name=again")
        assert result.returncode == 0, result.stderr
        assert differences(command_line.folder / "runs" / "whole", command_line.folder / "runs" / "again") == []
        assert before[parts / "metrics.jsonl"] == (parts / "metrics.jsonl").read_bytes()


def test_if_the_two_newest_are_damaged_the_best_is_used(command_line, parts):
    newest, older, *best = all_checkpoints(parts / "checkpoints")
    assert [step_of(checkpoint) for checkpoint in best] == [read_manifest(newest)["best_step"]]
    for checkpoint in (newest, older):
        (checkpoint / "manifest.json").unlink()
    result = command_line("--resume=runs/parts")
    assert f"resumed at step {step_of(best[0]):,}" in result.stdout
    assert differences(command_line.folder / "runs" / "whole", parts) == []


def test_the_two_newest_and_the_best_checkpoint_are_kept(command_line):
    every = ["--set=checkpoint.steps=400", "--set=checkpoint.keep=2"]
    assert command_line("--env=warehouse", *SMALL, "--steps=3200", "--name=k", *every).returncode == 0
    folder = command_line.folder / "runs" / "k"
    returns = {r["step"]: r["mean_return"] for r in read_metrics(folder) if r["phase"] == "evaluate"}
    best = max(returns, key=returns.get)
    checkpoints = all_checkpoints(folder / "checkpoints")
    assert [step_of(checkpoint) for checkpoint in checkpoints] == sorted({best, 2800, 3200}, reverse=True)
    assert read_manifest(checkpoints[0])["best_step"] == best
    with np.load(folder / "policies_best.npz") as policies:
        assert policies["step"] == best
        shard = np.load(folder / "checkpoints" / f"step_{best:012d}" / "rank_0000.npz")
        assert np.array_equal(shard["policy"], policies["parameters"])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("metrics.jsonl", flip, "runs/parts/metrics.jsonl: is damaged"),
        ("metrics.jsonl", cut, "runs/parts/metrics.jsonl: has lost records"),
        ("timing.jsonl", lambda content: b"", "runs/parts/timing.jsonl: has lost records"),
        (
            "config.yaml",
            lambda content: content.replace(b"clip: 0.2", b"clip: 0.3"),
            "--resume: runs/parts/config.yaml",
        ),
        (
            "config.yaml",
            lambda content: content.replace(b"clip: 0.2", b"clip: 0.3"),
            "was made with (ppo.clip is 0.2, not 0.3); restore it",
        ),
        ("config.yaml", lambda content: b"", "runs/parts/config.yaml: no configuration of a run"),
        ("run.json", cut, "runs/parts/run.json: damaged"),
        ("run.json", None, "runs/parts/run.json: cannot be used (No such file or directory); restore it, or start a"),
        ("run.json", lambda content: b"null", "runs/parts/run.json: damaged"),
    ],
)
def test_other_damaged_files_are_named_and_nothing_is_touched(command_line, parts, file, damage, message):
    if damage:
        (parts / file).write_bytes(damage((parts / file).read_bytes()))
    else:
        (parts / file).unlink()
    before = {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    result = command_line("--resume=runs/parts")
    assert result.returncode == 2
    assert message in one_line(result)
    assert before == {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}


def test_a_damaged_dataset_is_named_and_nothing_is_touched(command_line, parts):
    file = parts / "influence" / "agent_0002.h5"
    file.write_bytes(cut(file.read_bytes()))
    before = {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    result = command_line("--resume=runs/parts")
    assert result.returncode == 2
    assert "runs/parts/influence/agent_0002.h5: damaged" in one_line(result)
    assert before == {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    file.unlink()  # the remedy
    result = command_line("--resume=runs/parts")
    assert result.returncode == 0
    assert one_line(result).endswith("influence/agent_0002.h5: not there; goes on without its earlier rounds")


def test_a_damaged_dataset_of_which_nothing_is_kept_is_made_anew(command_line, parts):
    """A crash may leave one behind before there is a checkpoint that knows of it."""
    shutil.rmtree(parts)
    stop = {"DIALS_MPI_FAULT": "boundary:1:USR1"}  # in the middle of the first collection
    assert command_line("--env=warehouse", *SMALL, "--name=parts", EVERY_UNIT, **stop).returncode == 75
    (parts / "influence").mkdir()
    (parts / "influence" / "agent_0002.h5").write_bytes(b"no HDF5")
    result = command_line("--resume=runs/parts")
    assert result.returncode == 0, result.stderr
    assert differences(command_line.folder / "runs" / "whole", parts) == []


def test_two_processes_cannot_work_on_one_run(command_line):
    endless = ["--steps=100000000", "--set=evaluation.interval=10000000", EVERY_UNIT]
    process = command_line.start("--env=warehouse", "--name=one", *SMALL, *endless)
    folder = command_line.folder / "runs" / "one"
    wait_for(lambda: (folder / "influence" / "agent_0003.h5").exists(), process)
    result = command_line("--resume=runs/one")
    assert result.returncode == 2
    assert one_line(result) == (
        "dials_mpi: runs/one: another process is at work on this run; wait for its end, or stop it"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert json.loads((folder / "run.json").read_text())["state"] == "stopped"


def test_a_checkpoint_that_was_being_written_is_swept_away(command_line, parts):
    left_over = parts / "checkpoints" / "step_000000099999.partial"
    left_over.mkdir()
    (left_over / "rank_0000.npz").write_bytes(b"half")
    assert command_line("--resume=runs/parts").returncode == 0
    assert not left_over.exists()
    assert differences(command_line.folder / "runs" / "whole", parts) == []


def test_what_was_written_after_the_checkpoint_is_cut_back(command_line, parts):
    """A crash some time after a checkpoint leaves records and datasets that will be made again."""
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "phase": "evaluate"}\n{"step": 1000, "pha')
    with h5py.File(parts / "influence" / "agent_0002.h5", "a") as file:
        file.create_group("round_0007")
    (parts / "influence" / "agent_0001.h5.tmp").write_bytes(b"half")
    assert command_line("--resume=runs/parts").returncode == 0
    assert differences(command_line.folder / "runs" / "whole", parts) == []


def change_manifest(checkpoint, **values):
    """As somebody would who knows how to vouch for a manifest."""
    content = json.loads((checkpoint / "manifest.json").read_text()) | values
    del content["sha256"]
    (checkpoint / "manifest.json").write_text(json.dumps(content | {"sha256": _digest(content)}))


def test_pickles_are_never_opened(command_line, parts):
    """A checkpoint whose manifest vouches for a pickle: refused, not executed."""
    import hashlib
    import io

    class Bomb:
        def __reduce__(self):
            return (open, (str(parts / "boom"), "w"))

    newest = all_checkpoints(parts / "checkpoints")[0]
    buffer = io.BytesIO()
    np.savez(buffer, policy=np.array([Bomb()], dtype=object))
    (newest / "rank_0000.npz").write_bytes(buffer.getvalue())
    facts = {
        "agents": [0, 1, 2, 3],
        "size": len(buffer.getvalue()),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    change_manifest(newest, files={"rank_0000.npz": facts})
    result = command_line("--resume=runs/parts")
    assert result.returncode != 0
    assert "allow_pickle=False" in one_line(result)
    assert not (parts / "boom").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume=runs/none"], "--resume: runs/none is no run directory: it has no config.yaml"),
        (["--resume=auto", "--env=warehouse"], "--resume auto: give the run a --name"),
        (["--resume=runs/parts", "--name=x"], "--name: the run runs/parts has its name already; leave it out"),
        (["--resume=runs/parts", "--agents=9"], "--resume: in runs/parts agents is 4, not 9; a resumed run may change"),
        (
            ["--resume=runs/parts", "--seed=9", "--set=ppo.clip=0.3"],
            "--resume: in runs/parts ppo.clip is 0.2, not 0.3;",
        ),
        (["--resume=auto", "--name=parts", "--env=warehouse"], "--resume: in runs/parts dataset.copies is 2, not 25;"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(command_line, parts, arguments, message):
    before = {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    result = command_line(*arguments)
    assert one_line(result).startswith(f"dials_mpi: {message}")
    assert result.returncode == 2
    assert before == {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}, "nothing is touched"


def test_a_newer_version_of_the_format_is_refused(command_line, parts):
    for checkpoint in all_checkpoints(parts / "checkpoints"):
        change_manifest(checkpoint, format=FORMAT + 1)
    result = command_line("--resume=runs/parts")
    assert result.returncode == 2
    assert f"has format {FORMAT + 1}; this version of dials_mpi reads {FORMAT}" in result.stderr


def test_auto_starts_goes_on_and_leaves_what_is_finished(command_line):
    arguments = ["--env=warehouse", *SMALL, "--name=auto", "--resume=auto"]
    assert command_line(*arguments, EVERY_UNIT, AT_ONCE).returncode == 75
    assert command_line(*arguments).returncode == 0
    folder = command_line.folder / "runs" / "auto"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for more in ([], ["--steps=800"]):
        result = command_line(*arguments, *more)
        assert result.returncode == 0, result.stderr
        assert result.stdout == "runs/auto has come to step 1,600 already: nothing to do\n"
        assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_setting_that_its_version_did_not_have_yet_does_not_keep_a_run_from_going_on(command_line, parts):
    stored = yaml.safe_load((parts / "config.yaml").read_text())
    del stored["policy"]["gradient_precision"], stored["predictor"]["sees_actions"]
    (parts / "config.yaml").write_text(yaml.safe_dump(stored))
    for checkpoint in all_checkpoints(parts / "checkpoints"):
        configuration = read_manifest(checkpoint)["configuration"]
        del configuration["policy"]["gradient_precision"], configuration["predictor"]["sees_actions"]
        change_manifest(checkpoint, configuration=configuration)
    for ends in (75, 0):  # the second time from a checkpoint of the version that has it
        fault = {"DIALS_MPI_FAULT": "boundary:2:USR1"} if ends else {}
        result = command_line("--resume=runs/parts", EVERY_UNIT, **fault)
        assert result.returncode == ends, result.stderr
    assert differences(command_line.folder / "runs" / "whole", parts) == []


ANNEALED = ["--set=ppo.anneal=false", "--set=ppo.anneal_clip=true", "--set=ppo.anneal_entropy=true"]


@pytest.mark.parametrize(
    "again", [["--resume=runs/parts"], ["--env=warehouse", *SMALL, *ANNEALED, "--resume=auto", "--name=parts"]]
)
def test_a_prolonged_run_is_one_that_was_started_with_its_values(command_line, again):
    """Finished at 1,200 of what come to be 2,000 steps: clip and bonus have fallen to 0 by then, and stay there."""
    runs = command_line.folder / "runs"
    arguments = ["--env=warehouse", *SMALL, *ANNEALED]
    assert command_line(*arguments, "--steps=1200", "--name=parts").returncode == 0
    result = command_line(*again, "--steps=2000")
    assert result.returncode == 0, result.stderr
    stored = yaml.safe_load((runs / "parts" / "config.yaml").read_text())
    assert (stored["steps"], stored["ppo"]["anneal_steps"]) == (2000, 1200)
    assert command_line(*arguments, "--steps=2000", "--set=ppo.anneal_steps=1200", "--name=whole").returncode == 0
    assert differences(runs / "whole", runs / "parts") == []
    assert command_line(*arguments, "--steps=2000", "--name=other").returncode == 0
    assert differences(runs / "whole", runs / "other") != [], "it matters"


def test_a_prolonged_run_says_that_it_learns_nothing_more_where_it_does_not(command_line):
    assert command_line("--env=warehouse", *SMALL, "--steps=800", "--name=long").returncode == 0
    result = command_line("--resume=runs/long", "--steps=1200")
    assert "note: from step 800 on, ppo.anneal_steps since the run was made, the learning rate is 0" in result.stdout
    with np.load(command_line.folder / "runs" / "long" / "policies.npz") as policies:
        assert policies["step"] == 1200
        kept = policies["parameters"]
    shards = command_line.folder / "runs" / "long" / "checkpoints" / "step_000000000800"
    assert np.array_equal(kept, np.load(shards / "rank_0000.npz")["policy"])


def test_a_run_of_a_version_that_left_the_end_of_annealing_open_goes_on(command_line, parts):
    """Its configuration says null, and so does the manifest."""
    stored = yaml.safe_load((parts / "config.yaml").read_text())
    stored["ppo"]["anneal_steps"] = None
    (parts / "config.yaml").write_text(yaml.safe_dump(stored))
    for checkpoint in all_checkpoints(parts / "checkpoints"):
        configuration = read_manifest(checkpoint)["configuration"]
        configuration["ppo"]["anneal_steps"] = None
        change_manifest(checkpoint, configuration=configuration)
    # Prolonged, and stopped before it has a checkpoint that knows.
    assert command_line("--resume=runs/parts", "--steps=2000", AT_ONCE).returncode == 75
    assert command_line("--resume=runs/parts", "--steps=1600").returncode == 0
    assert differences(command_line.folder / "runs" / "whole", parts) == []


def test_what_an_older_checkpoint_says_of_the_reference_is_read_from_the_records_instead(command_line, parts):
    """Older versions wrote the mean of the best controller there, and compared every agent with it."""
    for checkpoint in all_checkpoints(parts / "checkpoints"):
        assert "reference" not in read_manifest(checkpoint)
        change_manifest(checkpoint, reference=-1.0)  # all agents would be above it
    assert command_line("--resume=runs/parts").returncode == 0
    assert differences(command_line.folder / "runs" / "whole", parts) == []


def test_a_run_cut_short_where_a_collection_was_to_evaluate_is_evaluated(command_line):
    stop = {
        "DIALS_MPI_FAULT": "boundary:4:USR1"
    }  # two turns of the first collection, a unit, and the last one before 800
    assert command_line("--env=warehouse", *SMALL, "--name=cut", EVERY_UNIT, **stop).returncode == 75
    folder = command_line.folder / "runs" / "cut"
    assert newest_whole(folder / "checkpoints")[1]["step"] == 800

    def evaluated():
        return [record["step"] for record in read_metrics(folder) if record["phase"] == "evaluate"]

    assert evaluated() == [0, 400]
    assert command_line("--resume=runs/cut", "--steps=800").returncode == 0
    assert evaluated() == [0, 400, 800]
