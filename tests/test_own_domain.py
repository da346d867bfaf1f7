"""Domains of users' own: every program finds them alike, and no file chooses what is imported."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import SMALL, TESTS, tool
from test_command_line import one_line
from test_resume import change_manifest
from test_scaling import small_costs

from dials_mpi.config import resolve
from dials_mpi.environments import GlobalEnvironment
from dials_mpi.errors import UserError
from dials_mpi.runs.checkpoint import all_checkpoints

GIFT = "runs.gift.payload:Gift"
"""What somebody's run names: a domain that works, beside it in the run's own directory."""
PAYLOAD = """
from pathlib import Path

from dials_mpi.simulators.warehouse import Warehouse as Gift

Path(__file__).with_name("ran").touch()
"""
MINE = """
from dials_mpi.simulators.warehouse import Warehouse


class Mine(Warehouse):
    name = "mine"
"""


@pytest.fixture
def gift(small_run, command_line):
    """A finished run of somebody else's in `runs/gift`, which brings code along."""
    run = command_line.folder / "runs" / "gift"
    shutil.copytree(small_run, run)
    (run / "payload.py").write_text(PAYLOAD)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("env: warehouse", f"env: {GIFT}"))
    return run


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "runs/gift"],
        ["evaluate", "runs/gift", "--best", "--agents=9"],
        ["--resume=runs/gift"],
        ["--resume=runs/gift", "--steps=2400"],
        ["--resume=runs/gift", "--dry-run"],
        ["--resume=auto", "--name=gift"],
        ["--resume=auto", "--name=gift", "--env=warehouse"],
        ["--config=runs/gift/config.yaml"],
        ["--config=runs/gift/config.yaml", "--dry-run"],
        ["export_policy.py", "runs/gift", "--all"],
        ["render.py", "runs/gift", "--at=1", "--out=a.png"],
        ["fidelity_traffic.py", "runs/gift"],
        ["scaling_model.py", "--check", "runs/gift"],
        ["scaling_model.py", "--config=runs/gift/config.yaml", "--agents", "4", "--ranks", "1"],
    ],
    ids=" ".join,
)
def test_no_program_imports_what_a_file_names(command_line, gift, arguments):
    before = contents(command_line.folder)
    if arguments[0].endswith(".py"):
        path = f"{TESTS.parent}:{command_line.folder}"
        result = tool(*arguments, folder=command_line.folder, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
        (line,) = result.stderr.splitlines()
    else:
        result = command_line(*arguments, PYTHONDONTWRITEBYTECODE="1")
        line = one_line(result)
    assert result.returncode == 2
    assert "runs/gift/config.yaml, line 1" in line
    assert repr(GIFT) in line
    if arguments[0] == "fidelity_traffic.py" or "--env=warehouse" in arguments:
        assert "; the two must be the same" in line
    else:
        assert f"add --env {GIFT!r}" in line
    assert contents(command_line.folder) == before, "nothing ran, nothing is written"


@pytest.mark.parametrize("ranks", [0, 3])
def test_a_checkpoint_does_not_choose_code_either(command_line, small_run, ranks):
    run = command_line.folder / "runs" / "gift"
    shutil.copytree(small_run, run)
    (run / "payload.py").write_text(PAYLOAD)
    for checkpoint in all_checkpoints(run / "checkpoints"):
        stored = json.loads((checkpoint / "manifest.json").read_text())["configuration"]
        change_manifest(checkpoint, configuration=stored | {"env": GIFT})
    before = contents(command_line.folder)
    result = command_line("--resume=runs/gift", "--steps=2400", ranks=ranks, PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 2
    assert repr(GIFT) in one_line(result)
    (run / "lock").unlink()
    assert contents(command_line.folder) == {file: text for file, text in before.items() if file.name != "lock"}


@pytest.mark.parametrize("program", ["report", "plot_learning", "plot_scaling", "influence"])
def test_what_a_run_holds_is_shown_without_its_code(command_line, gift, program):
    path = f"{TESTS.parent}:{command_line.folder}"
    result = tool(f"{program}.py", gift, folder=command_line.folder, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert not (gift / "ran").exists()
    if program == "report":
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"report: note: {gift}: no picture of an episode (")
        assert f"add --env {GIFT!r}" in line


def test_a_domain_of_ones_own_is_trained_resumed_evaluated_and_shown(command_line):
    """In a folder that is on nobody's path but that of `python -m`."""
    folder = command_line.folder
    (folder / "mine.py").write_text(MINE)
    named = "--env=mine:Mine"
    start = [named, "--agents=4", "--name=r", *SMALL]
    result = command_line(*start, "--set=checkpoint.boundary_seconds=0", "--max-hours=0", ranks=2)
    assert result.returncode == 75, result.stderr
    assert "go on with --resume runs/r --env mine:Mine\n" in result.stdout
    assert (
        command_line("--resume=auto", *start, "--set=checkpoint.boundary_seconds=0", "--max-hours=0").returncode == 75
    )
    result = command_line("--resume=runs/r", named, ranks=2)
    assert result.returncode == 0, result.stderr
    result = command_line("evaluate", "runs/r", named, "--episodes=2", "--no-references", "--agents=9")
    assert result.returncode == 0, result.stderr
    assert ": mine with 9 agents" in result.stdout
    for name, *arguments in (
        ("export_policy.py", "runs/r", "--agent=1"),
        ("render.py", "runs/r", "--at=3", "--out=a.png"),
        ("report.py", "runs/r", "--episode=still"),
        ("reference_returns.py", "--agents", "4", "--episodes", "2"),
    ):
        result = tool(name, *arguments, named, folder=folder)
        assert result.returncode == 0, result.stderr
        assert "note:" not in result.stderr
    html = (folder / "runs" / "r" / "report.html").read_text(encoding="utf-8")
    assert "The last policies of r on the global simulator" in html
    assert "--config runs/r/config.yaml --env mine:Mine" in html, "how to run it again"


def test_a_run_is_checked_against_the_model_of_a_domain_that_is_named(gift, tmp_path):
    file = small_costs(tmp_path)
    costs = json.loads(file.read_text())
    costs["settings"]["env"] = GIFT
    file.write_text(json.dumps(costs))
    path = f"{TESTS.parent}:{tmp_path}"
    result = tool("scaling_model.py", "--check", gift, f"--env={GIFT}", "--costs", file, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert (gift / "ran").exists(), "who names it gets it"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resume=runs/w", "--env=traffic"],
        ["--resume=auto", "--name=w", "--env=traffic"],
        ["--resume=runs/w", "--set=env=traffic"],
        ["--resume=runs/w", "--config=traffic.yaml"],
        ["evaluate", "runs/w", "--env=traffic"],
    ],
    ids=" ".join,
)
def test_another_domain_than_the_runs_is_one_line(command_line, arguments):
    folder = command_line.folder / "runs" / "w"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(resolve([("test", {"env": "warehouse"})], 4).to_yaml())
    (command_line.folder / "traffic.yaml").write_text("seed: 0\nenv: traffic\n")
    result = command_line(*arguments)
    assert result.returncode == 2
    line = one_line(result)
    assert line.startswith("dials_mpi: env: it is ")
    assert "'warehouse'" in line
    assert "'traffic'" in line
    if arguments[-1] == "--env=traffic":
        assert "it is 'warehouse' in runs/w/config.yaml, line 1, not 'traffic'" in line


def test_a_report_of_runs_that_are_not_of_the_domain_named_says_so(small_run, tmp_path):
    result = tool("report.py", small_run, "--env=mine:Mine", "--out", tmp_path / "r.html")
    assert result.returncode == 2
    assert result.stderr == "report: --env: none of the runs is on 'mine:Mine'; there are: warehouse\n"
    assert not (tmp_path / "r.html").exists()


def test_only_the_domain_that_is_named_is_imported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb_one.py").write_text("raise SystemError('imported')")
    mine = [("mine.yaml", {"env": "ring:Ring"})]
    assert resolve(mine, 3, "ring:Ring").env == "ring:Ring"
    for named in (None, "warehouse", "ring:Uninfluenced", "ring", ":Ring", ""):
        with pytest.raises(UserError, match="'ring:Ring'"):
            resolve(mine, 3, named)
    # Of several layers the last one counts; the others are not looked at.
    assert resolve([("mine.yaml", {"env": "bomb_one:X"}), ("--env", {"env": "warehouse"})], 4, "warehouse")
    with pytest.raises(UserError, match=r"later\.yaml names 'bomb_one:X'"):
        resolve([("mine.yaml", {"env": "warehouse"}), ("later.yaml", {"env": "bomb_one:X"})], 4)
    assert GlobalEnvironment("ring:Ring", agents=3).possible_agents, "in Python the argument names it"


@pytest.mark.parametrize("program", ["python -m dials_mpi", "render.py", "reference_returns.py", "scaling_model.py"])
def test_every_program_looks_for_a_domain_on_the_path_and_in_the_current_directory(command_line, program):
    folder = command_line.folder
    (folder / "broken_here.py").write_text("1 / 0")
    (folder / "needs_more.py").write_text("import nowhere_to_be_found")
    (folder / "leaves.py").write_text("raise SystemExit('I am a program\\nof two lines')")

    def complaint(env):
        if program.endswith(".py"):
            more = ["--out=a.png"] if program == "render.py" else []
            result = tool(program, f"--env={env}", *more, folder=folder)
            (line,) = result.stderr.splitlines()
        else:
            result = command_line(f"--env={env}")
            line = one_line(result)
        assert result.returncode == 2
        return line.partition(": ")[2]

    assert complaint("broken_here:X") == (
        "env: 'broken_here:X': importing broken_here fails (ZeroDivisionError: division by zero)"
    )
    assert complaint("needs_more:X") == (
        "env: 'needs_more:X': importing needs_more fails (ModuleNotFoundError: No module named 'nowhere_to_be_found')"
    )
    assert complaint("leaves:X") == "env: 'leaves:X': importing leaves fails (SystemExit: I am a program)"
    assert complaint("not.here:X") == (
        f"env: 'not.here:X': No module named 'not' on Python's path or in {folder}; install its package, or start "
        "where it is"
    )


def test_an_installed_module_comes_before_one_of_the_current_directory(command_line):
    (command_line.folder / "installed").mkdir()
    for folder in (command_line.folder, command_line.folder / "installed"):
        (folder / "my_module.py").write_text(f"raise KeyError({str(folder)!r})")
    path = f"{TESTS.parent}:{command_line.folder / 'installed'}"
    result = tool("reference_returns.py", "--env=my_module:X", folder=command_line.folder, PYTHONPATH=path)
    assert f"KeyError: '{command_line.folder / 'installed'}'" in result.stderr


def test_a_built_in_domain_does_not_open_the_current_directory(command_line):
    """Else a folder of foreign files could stand in for a package that a simulator loads."""
    code = (
        "import os, sys\nfrom dials_mpi.simulators.registry import domain_class\n"
        "domain_class('warehouse')\nassert os.getcwd() not in sys.path\n"
        "domain_class('ring:Ring')\nassert sys.path[-1] == os.getcwd()\n"
        "domain_class('ring:Ring')\nassert sys.path.count(os.getcwd()) == 1\n"
    )
    script = command_line.folder / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=command_line.folder,
        env=command_line.environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
