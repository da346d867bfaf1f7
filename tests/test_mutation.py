"""The tool that changes the program and asks whether a test notices."""

import pytest
from conftest import TESTS, tool

STREAMS = TESTS.parent / "dials_mpi" / "streams.py"


def test_mutants_are_killed_or_survive_and_files_stay_as_they_are(tmp_path):
    """Of the line that refuses misspelt names: a test that misspells none cannot tell all changes from the truth."""
    (tmp_path / "test_it.py").write_text(
        "from dials_mpi.streams import stream\n\ndef test_it():\n    assert stream(0, 'train/actions')\n"
    )
    line = next(i for i, text in enumerate(STREAMS.read_text().splitlines(), 1) if "not in PURPOSES" in text)
    before = STREAMS.read_bytes(), STREAMS.stat().st_mtime_ns
    result = tool("mutation.py", STREAMS, f"--lines={line}", "--tests", tmp_path / "test_it.py")
    assert result.returncode == 1, result.stderr
    outcomes = {text.split("→")[1].split(":")[0].strip(): text for text in result.stdout.splitlines()[:-1]}
    assert "killed by" in outcomes["(True)"]
    assert "test_it" in outcomes["(purpose in PURPOSES)"]
    assert "SURVIVED" in outcomes["(False)"]
    assert "3 mutants, 2 killed, 1 survived" in result.stdout
    assert (STREAMS.read_bytes(), STREAMS.stat().st_mtime_ns) == before


def test_tests_that_fail_anyway_are_named(tmp_path):
    (tmp_path / "test_it.py").write_text("import dials_mpi.streams\n\ndef test_it():\n    assert False\n")
    result = tool("mutation.py", STREAMS, "--tests", tmp_path / "test_it.py")
    assert result.returncode == 2
    assert "test_it fails without any change" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py: there is no such file"),
        (["setup.py"], "no tests are known for it; name some with --tests"),
        (["--lines=many"], "many is no range of lines, as 90-110 is one"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = tool("mutation.py", *[TESTS.parent / a if a == "setup.py" else a for a in arguments])
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
