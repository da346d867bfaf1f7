"""Packages that are optional: where one is missing, a line says which extra brings it."""

import subprocess
import sys

import pytest
from conftest import tool, without_packages


@pytest.mark.parametrize(
    ("missing", "program", "arguments", "line"),
    [
        ("matplotlib", "render", ["RUN", "--out", "OUT/a.png"], "render: pictures: MISSING; INSTALL[plots]'"),
        ("matplotlib", "plot_learning", ["RUN"], "plot_learning: figures: MISSING; INSTALL[plots]'"),
        ("matplotlib", "plot_scaling", ["RUN"], "plot_scaling: figures: MISSING; INSTALL[plots]'"),
        ("matplotlib", "report", ["RUN", "--episode=none", "--out=OUT/r"], "report: figures: MISSING; INSTALL[plots]'"),
        ("matplotlib", "influence", ["RUN", "--figure", "OUT/a.png"], "influence: --figure: MISSING; INSTALL[plots]'"),
        (
            "onnx",
            "export_policy",
            ["RUN", "--all", "--format", "onnx", "--out", "OUT/p"],
            "export_policy: --format onnx: MISSING; INSTALL[export]', or take torchscript",
        ),
        ("psutil", "fault_campaign", ["--list"], "fault_campaign: MISSING; INSTALL[tests]'"),
    ],
)
def test_a_missing_extra_is_one_line_of_a_program(small_run, tmp_path, missing, program, arguments, line):
    out = tmp_path / "out"
    out.mkdir()
    words = [word.replace("RUN", str(small_run)).replace("OUT", str(out)) for word in arguments]
    result = tool(f"{program}.py", *words, PYTHONPATH=without_packages(tmp_path, missing))
    line = line.replace("MISSING", f"{missing} is not there").replace("INSTALL", "pip install 'dials_mpi")
    assert result.stderr == f"{line}\n"
    assert result.returncode == 2
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("missing", ["gymnasium", "pettingzoo"])
def test_environments_without_their_extra_are_an_import_error_that_names_it(tmp_path, missing):
    script = (
        "try:\n    import dials_mpi.environments\n"
        "except ImportError as error:\n    print(error)\n"
    )  # fmt: skip
    assert _said(script, without_packages(tmp_path, missing)) == (
        f"dials_mpi.environments: {missing} is not there; pip install 'dials_mpi[envs]'\n"
    )


def test_pictures_of_environments_without_their_extra_are_an_import_error_that_names_it(tmp_path):
    script = """
from dials_mpi.environments import LocalEnvironment
environment = LocalEnvironment("warehouse", render_mode="rgb_array")
environment.reset(seed=0)
environment.step(0)
try:
    environment.render()
except ImportError as error:
    print(error)
"""
    assert _said(script, without_packages(tmp_path, "matplotlib")) == (
        "render: matplotlib is not there; pip install 'dials_mpi[plots]'\n"
    )


def _said(script: str, path: str) -> str:
    result = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout
