"""What the package promises to those who install it."""

import ast
import sys

from conftest import TESTS
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


def keyword_of_setup(name: str):
    """The value of an argument of `setup`, a literal."""
    calls = [
        node for node in ast.walk(ast.parse((TESTS.parent / "setup.py").read_text())) if isinstance(node, ast.Call)
    ]
    return next(ast.literal_eval(k.value) for call in calls for k in call.keywords if k.arg == name)


def test_the_promised_python_is_the_one_that_the_tests_run_on_and_the_constraints_are_for():
    promised = SpecifierSet(keyword_of_setup("python_requires"))
    oldest = next(str(minor) for minor in range(20) if f"3.{minor}" in promised)
    assert f"3.{oldest}" == f"{sys.version_info.major}.{sys.version_info.minor}"
    for line in (TESTS.parent / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            marker = Requirement(line).marker
            assert marker is None or marker.evaluate({"python_version": f"3.{oldest}"}), line
