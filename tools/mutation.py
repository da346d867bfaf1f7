#!/usr/bin/env python3
"""Changes one thing at a time in the program and asks whether a test notices: how much the tests see.

    python tools/mutation.py                                    every file of the table below: hours on one core
    python tools/mutation.py dials_mpi/learning/ppo.py          one file: minutes to an hour
    python tools/mutation.py dials_mpi/learning/ppo.py --lines 90-110 --seconds 600
    python tools/mutation.py dials_mpi/streams.py --tests tests/test_config.py

A mutant is a file with one comparison, operator, number, truth value, keyword argument or statement changed. Every
mutant is met by those of the file's quick tests that come to its line, up to the first that fails: it is killed, or it
survives, and then either a test is missing or the change changes nothing.

Nothing is written: this process imports the libraries once, and for every mutant a child is forked that imports the
changed file from memory. So files stay as they are whatever happens, and a mutant takes as long as its tests. Tests
that start processes of their own are of no use, for these import the file as it stands.

Exit codes: 0 all killed, 1 some survived, 2 bad input, or tests that fail without any change.
"""

import argparse
import ast
import contextlib
import gc
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from dials_mpi.analysis.offline import Parser, run_tool  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.parallel.threads import one_thread  # noqa: E402

NAME = "mutation"
TESTS: dict[str, tuple[str, ...]] = {
    "dials_mpi/learning/ppo.py": ("tests/test_update.py", "tests/test_ppo.py"),
    "dials_mpi/learning/rollout.py": ("tests/test_ppo.py", "tests/test_schedule.py"),
    "dials_mpi/learning/networks.py": ("tests/test_networks.py", "tests/test_update.py", "tests/test_ppo.py"),
    "dials_mpi/learning/optimiser.py": ("tests/test_networks.py", "tests/test_update.py"),
    "dials_mpi/learning/policy.py": ("tests/test_ppo.py", "tests/test_update.py", "tests/test_networks.py"),
    "dials_mpi/learning/episodes.py": ("tests/test_influence.py", "tests/test_schedule.py", "tests/test_dials.py"),
    "dials_mpi/learning/statistics.py": ("tests/test_ppo.py", "tests/test_schedule.py"),
    "dials_mpi/influence/predictor.py": ("tests/test_influence.py", "tests/test_dials.py", "tests/test_analysis.py"),
    "dials_mpi/influence/augmented_simulator.py": (
        "tests/test_influence.py",
        "tests/test_schedule.py",
        "tests/test_dials.py",
    ),
    "dials_mpi/influence/collection.py": ("tests/test_influence.py", "tests/test_dials.py"),
    "dials_mpi/algorithms/dials.py": ("tests/test_schedule.py", "tests/test_dials.py"),
    "dials_mpi/algorithms/global_ppo.py": ("tests/test_schedule.py",),
    "dials_mpi/algorithms/dppo.py": ("tests/test_dppo.py",),
    "dials_mpi/training/evaluation.py": ("tests/test_schedule.py", "tests/test_dials.py", "tests/test_evaluation.py"),
    "dials_mpi/training/plan.py": ("tests/test_config.py", "tests/test_schedule.py", "tests/test_dry_run.py"),
    "dials_mpi/streams.py": ("tests/test_config.py", "tests/test_schedule.py"),
    "dials_mpi/simulators/noise.py": ("tests/test_config.py", "tests/test_ppo.py", "tests/test_influence.py"),
    "dials_mpi/simulators/warehouse/regions.py": ("tests/test_warehouse.py",),
    "dials_mpi/simulators/warehouse/handcoded.py": ("tests/test_warehouse.py",),
    "dials_mpi/analysis/results.py": ("tests/test_figures.py",),
    "dials_mpi/analysis/comparison.py": ("tests/test_figures.py",),
}
"""The files that carry the science, and the tests that look at each, the quickest first."""

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_FUNCTIONS = {
    "min": "max", "max": "min", "argmax": "argmin", "any": "all", "all": "any", "square": "abs", "sqrt": "abs",
    "exp": "expm1", "sigmoid": "tanh", "mean": "sum", "round": "int", "floor": "ceil", "ceil": "floor",
}  # fmt: skip
"""Torch's, numpy's and Python's; a name that something has not got is killed by the first test."""
_PYTEST_TROUBLE = (4, 5)
"""Exit codes of pytest: no such test, no test at all."""
_ENOUGH = 3
"""A mutant may take so many times as long as the tests do without a change, and a while."""


@dataclass(frozen=True)
class Mutant:
    lines: range
    """Where it is."""
    before: str
    """What is there."""
    after: str
    source: str
    """Of the whole module."""


class _Sites(ast.NodeVisitor):
    """Collects what can be changed: (node, what takes its place), nodes of code alone."""

    def __init__(self):
        self.found: list[tuple[ast.AST, ast.AST]] = []

    def _add(self, node, instead) -> None:
        self.found.append((node, ast.copy_location(instead, node)))

    def visit_Compare(self, node):
        for i, operator in enumerate(node.ops):
            if other := _COMPARISONS.get(type(operator)):
                self._add(node, ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators))
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if (other := _OPERATORS.get(type(node.op))) and not _is_text(node.left):
            self._add(node, ast.BinOp(node.left, other(), node.right))
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        self._add(node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            self._add(node, node.operand)
        if not (isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)):
            self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self._add(node, ast.Constant(not node.value))
        elif isinstance(node.value, int | float):
            self._add(node, ast.Constant(node.value + 1 if node.value < 2 else node.value - 1))

    def visit_IfExp(self, node):
        self._add(node, node.body)
        self._add(node, node.orelse)
        self.generic_visit(node)

    def visit_If(self, node):
        for truth in (True, False):
            self._add(node.test, ast.Constant(truth))
        self.generic_visit(node)

    def visit_While(self, node):
        self._add(node.test, ast.Constant(False))
        self.generic_visit(node)

    def visit_Call(self, node):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if other := _FUNCTIONS.get(name):
            to = ast.Attribute(node.func.value, other) if isinstance(node.func, ast.Attribute) else ast.Name(other)
            self._add(node, ast.Call(ast.copy_location(to, node.func), node.args, node.keywords))
        for i in range(len(node.keywords)):
            if node.keywords[i].arg:
                self._add(node, ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :]))
        self.generic_visit(node)

    def visit_Subscript(self, node):
        self.visit(node.value)
        self.visit(node.slice)

    def visit_AugAssign(self, node):
        if other := _OPERATORS.get(type(node.op)):
            self._add(node, ast.AugAssign(node.target, other(), node.value))
        self._add(node, ast.Pass())
        self.visit(node.value)

    def visit_Assign(self, node):
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._add(node, ast.Pass())  # a field or a part of an array keeps what it had
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if not isinstance(node.value, ast.Yield):
            self._add(node, ast.Pass())
        self.generic_visit(node)

    def visit_Return(self, node):
        self.generic_visit(node)

    def visit_Continue(self, node):
        self._add(node, ast.Break())

    def visit_Break(self, node):
        self._add(node, ast.Continue())

    def visit_Raise(self, node):
        self._add(node, ast.Pass())  # and not what it says

    def visit_FunctionDef(self, node):
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node):
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)

    def visit_JoinedStr(self, node):
        """What people read is not looked at."""


def _is_text(node) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def mutants_of(path: Path) -> list[Mutant]:
    """All mutants of a file, from its top to its end."""
    text = path.read_text(encoding="utf-8")
    sites = _Sites()
    sites.visit(ast.parse(text))
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    whole, found = text.encode(), []
    for node, instead in sites.found:
        first, last = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        before = whole[first:last].decode()
        after = ast.unparse(instead)
        if isinstance(instead, ast.expr):
            after = f"({after})"
        changed = (whole[:first] + after.encode() + whole[last:]).decode()
        if ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)):
            found.append(
                Mutant(
                    range(node.lineno, node.end_lineno + 1), " ".join(before.split()), " ".join(after.split()), changed
                )
            )
    return sorted(found, key=lambda mutant: mutant.lines[0])


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a text in place of its file."""

    def __init__(self, path: Path, source: str):
        self._path, self._source = path, source
        self._name = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)

    def exec_module(self, module):
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)

    def get_source(self, name):
        return self._source


class FirstFailure:
    """A pytest plugin that writes down the first test that fails, and ends the process."""

    def __init__(self, verdict: Path):
        self._verdict = verdict

    def pytest_exception_interact(self, node, call, report):
        if report.failed:
            self._verdict.write_text(report.nodeid)
            os._exit(1)  # at once: the rest takes longer than many a test


class Coverage:
    """A pytest plugin that writes down which lines of a file each test comes to, and how long it takes.

    What a file of tests prepares once and what importing runs belongs to all tests that come after it there.
    """

    def __init__(self, path: Path, into: Path):
        self._file, self._into = str(path), into
        self._lines: set[int] = set()
        self._of_file: dict[str, set[int]] = {}
        self._tests: dict[str, tuple[float, list[int]]] = {}
        sys.settrace(self._enter)

    def _enter(self, frame, event, argument):
        return self._step if frame.f_code.co_filename == self._file else None

    def _step(self, frame, event, argument):
        self._lines.add(frame.f_lineno)
        return self._step

    def pytest_collection_finish(self, session):
        self._at_import, self._lines = self._lines, set()
        self._names = {item.nodeid: f"{item.path}::{item.nodeid.partition('::')[2]}" for item in session.items}

    def pytest_runtest_logreport(self, report):
        if report.when == "setup":
            self._begun = time.monotonic() - report.duration
            self._of_file.setdefault(report.nodeid.partition("::")[0], set()).update(self._lines)
        elif report.when == "teardown":
            lines = self._lines | self._at_import | self._of_file[report.nodeid.partition("::")[0]]
            self._tests[self._names[report.nodeid]] = time.monotonic() - self._begun, sorted(lines)
            self._lines = set()
        sys.settrace(self._enter)  # pytest may have ended it

    def pytest_sessionfinish(self):
        self._into.write_text(json.dumps(self._tests))


def tests_by_line(path: Path, tests: list[str]) -> tuple[dict[int, list[str]], float]:
    """Names of the tests that come to each line of a file, the quickest first; and how many seconds all took.

    Raises:
        UserError: one fails.
    """
    with tempfile.TemporaryDirectory(prefix="dials_mpi_mutant_") as folder:
        found = Path(folder) / "coverage"
        source = path.read_text(encoding="utf-8")
        failed, seconds = failed_test(path, source, tests, None, lambda: Coverage(path, found))
        if failed:
            raise UserError(f"{path}: {failed} fails without any change")
        by_line: dict[int, list[str]] = {}
        for test, (_, lines) in sorted(json.loads(found.read_text()).items(), key=lambda item: item[1][0]):
            for line in lines:
                by_line.setdefault(line, []).append(test)
    return by_line, seconds


def failed_test(
    path: Path, source: str, tests: list[str], seconds: float | None, plugin: Callable[[], object] | None = None
) -> tuple[str | None, float]:
    """Runs tests in a child, with `source` in place of a file.

    Returns:
        Name of the first test that failed, or why there was no result; None if all passed. And the seconds it took.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dials_mpi_mutant_") as folder:
        verdict = Path(folder) / "verdict"
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                code = _test_in_child(path, source, tests, Path(folder), verdict, plugin)
            finally:
                os._exit(code)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(child, child)
        try:
            code = _wait(child, seconds)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # what the tests have started, and the child after Ctrl-C
        said = verdict.read_text() if verdict.exists() else ""
    spent = time.monotonic() - begun
    if code == 0:
        return None, spent
    if code is None:
        return f"no end within {seconds:.0f} s", spent
    if not said and code in _PYTEST_TROUBLE:
        raise UserError(f"{', '.join(tests)}: pytest could not run these tests (its exit code {code})")
    return said or f"exit code {code}", spent


def _wait(child: int, seconds: float | None) -> int | None:
    """The child's exit code; None if it has not ended in time."""
    end = time.monotonic() + (seconds or float("inf"))
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _test_in_child(path: Path, source: str, tests: list[str], folder: Path, verdict: Path, plugin) -> int:
    import pytest

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.meta_path.insert(0, _Changed(path, source))
    os.chdir(ROOT)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception", f"--basetemp={folder / 'tests'}"]
    return int(pytest.main([*options, *tests], plugins=[FirstFailure(verdict), *([plugin()] if plugin else [])]))


def prepare() -> None:
    """Imports what every child needs and no mutant is part of."""
    one_thread(os.environ)
    sys.dont_write_bytecode = True
    import h5py  # noqa: F401
    import numpy  # noqa: F401 - and its random numbers
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import yaml  # noqa: F401

    torch.set_num_threads(1)
    for name in [name for name in sys.modules if name.partition(".")[0] == "dials_mpi"]:
        del sys.modules[name]  # a child is to import all of it anew, the mutant as well
    gc.collect()
    gc.freeze()
    gc.disable()


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    p.add_argument("files", metavar="FILE", type=Path, nargs="*", help="files of the program (all of the table)")
    p.add_argument("--tests", metavar="TEST", nargs="+", help="as for pytest, in place of the table's")
    p.add_argument("--lines", metavar="FIRST-LAST", type=_lines, help="only mutants of these lines")
    p.add_argument("--sample", metavar="N", type=int, help="so many mutants of each file, drawn at random (all)")
    p.add_argument("--seconds", metavar="S", type=float, help="begin no further mutant after that time (no limit)")
    return p


def _lines(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no range of lines, as 90-110 is one") from None


def work(arguments: argparse.Namespace) -> int:
    files = [path.resolve() for path in arguments.files] or [ROOT / name for name in TESTS]
    asked = []
    for path in files:
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        if not arguments.tests and name not in TESTS:
            raise UserError(f"{name}: no tests are known for it; name some with --tests")
        asked.append((path, name, arguments.tests or list(TESTS[name])))
    prepare()
    end = time.monotonic() + (arguments.seconds or float("inf"))
    survived = 0
    for path, name, tests in asked:
        by_line, seconds = tests_by_line(path, tests)
        survived += _try_all(name, path, by_line, _chosen(path, arguments), _ENOUGH * seconds + 20, end)
    return 1 if survived else 0


def _chosen(path: Path, arguments: argparse.Namespace) -> list[Mutant]:
    mutants = [m for m in mutants_of(path) if not arguments.lines or m.lines[0] in arguments.lines]
    if arguments.sample and arguments.sample < len(mutants):
        mutants = sorted(random.Random(0).sample(mutants, arguments.sample), key=lambda m: m.lines[0])
    return mutants


def _try_all(
    name: str, path: Path, by_line: dict[int, list[str]], mutants: list[Mutant], limit: float, end: float
) -> int:
    """Tries mutants and prints what becomes of each; returns how many survived."""
    survived = tried = 0
    for mutant in mutants:
        if time.monotonic() > end:
            break
        tests = max((by_line.get(line, []) for line in mutant.lines), key=len)
        failed, seconds = failed_test(path, mutant.source, tests, limit) if tests else (None, 0.0)
        tried += 1
        survived += failed is None
        outcome = f"killed by {failed}" if failed else f"SURVIVED {len(tests)} tests"
        where = f"{name}:{mutant.lines[0]}"
        print(f"{where}: {mutant.before}  →  {mutant.after}: {outcome} ({seconds:.1f} s)", flush=True)
    left = f", {len(mutants) - tried} not tried" if tried < len(mutants) else ""
    print(f"{name}: {tried} mutants, {tried - survived} killed, {survived} survived{left}", flush=True)
    return survived


def main(arguments: list[str] | None = None) -> int:
    try:
        return run_tool(parser(), work, arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
