"""The first command of the README, and what it says comes next."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, TESTS, CommandLine, mpirun

INSTALLED = "installed.txt"


@pytest.fixture
def checkout(tmp_path):
    """A copy whose .venv is this Python, with all that is to be installed; what would be is written down instead."""
    checkout = tmp_path / "check out"
    for folder in ("tools", "dials_mpi", "configs"):
        shutil.copytree(TESTS.parent / folder, checkout / folder)
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, script in {
        "python": f'exec "{sys.executable}" "$@"',
        "mpirun": f'exec "{mpirun()}" "$@"',
        "pip": f'echo "$@" >> "{checkout / INSTALLED}"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    # Without it there is neither this Python nor the package.
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH" PYTHONPATH="{checkout}:{TESTS}"\n')
    return checkout


def shell(command: str, checkout: Path) -> subprocess.CompletedProcess:
    environment = {**CommandLine(checkout).environment, "PATH": os.defpath}
    del environment["PYTHONPATH"]
    return subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize(
    ("arguments", "run", "extras"),
    [
        ("", "runs/warehouse-4-dials-seed0-", "plots"),
        ("--runs 'my runs' --name a=1 --env ring:Ring --set ppo.sequence_length=50", r"my\ runs/a=1", "plots"),
        ("--env traffic --set domain.horizon=50 --set policy.recurrent_size=0", "runs/traffic-4-", "plots,traffic"),
    ],
)
def test_every_command_that_comes_next_works_as_it_stands(checkout, arguments, run, extras):
    result = shell(f"tools/quickstart.sh {' '.join(SMALL)} --seed=0 {arguments}", checkout)
    assert result.returncode == 0, result.stderr
    asked = (checkout / INSTALLED).read_text()
    assert f"--editable .[{extras}]\n" in asked
    head, _, commands = result.stdout.partition(f"\n\nNext, in {checkout}:\n")
    assert head.splitlines()[-1].startswith("results in ")
    activate, *commands = commands.splitlines()
    programs = [command.partition(run)[0].strip() for command in commands]
    assert programs == ["python -m dials_mpi evaluate", "python tools/report.py", "python tools/plot_learning.py"]
    for command in commands:
        outcome = shell(f"{activate}\n{command}", checkout)
        assert outcome.returncode == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("--agents 26", 2), ("--name r --set checkpoint.boundary_seconds=0 --max-hours=0", 75), ("--help", 0)],
)
def test_nothing_comes_next_where_no_run_has_come_to_its_end(checkout, arguments, code):
    result = shell(f"tools/quickstart.sh {arguments}", checkout)
    assert result.returncode == code, result.stderr
    assert "Next" not in result.stdout
