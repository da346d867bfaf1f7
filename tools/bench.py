#!/usr/bin/env python3
"""Speed, memory and scaling on this machine, beside the published code and what they should be.

    tools/bench.py --json new.json                           all parts, in about 25 minutes
    tools/bench.py warehouse-learner traffic-gs              two of them; --list names them all
    tools/bench.py roofline --json new.json --against old.json
    tools/bench.py --from new.json --against old.json        compares without measuring

A figure is the median over repeats, which alternate between the figures of a part; the spread is from the smallest to
the largest. What one process does is timed in its own CPU time, which is what an idle core takes, with one thread;
whole runs of several ranks, and SUMO over traci, in wall time. `published` is the published code on one core of a
machine of this kind, or the paper's figure, and × says how many times better this one is. --against calls two
figures different if their spreads do not overlap.

Exit codes: 0 done; 2 bad input.
"""

import argparse
import importlib
import json
import math
import os
import platform
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench_measure import USUAL_SECONDS, Figure, Options, check_counter

from dials_mpi.analysis.offline import Parser, run_tool, tell
from dials_mpi.cli import at_least
from dials_mpi.errors import UserError
from dials_mpi.runs.directory import git_revision, versions
from dials_mpi.runs.files import replace_durably
from dials_mpi.runs.progress import clock_time

NAME = "bench"
_SCHEMA = "dials_mpi benchmark"
_SCHEMA_VERSION = 1
_CLEAR_LINE = "\r\033[K"
_IDLE = 0.3
"""Mean number of running processes below which a machine counts as idle."""


class Part(NamedTuple):
    module: str
    """Of the function that is called as the part is, with _ for -."""
    seconds: float
    """That it takes, about."""
    repeats: int
    what: str


PARTS = {
    "warehouse-learner": Part(
        "bench_rates", 100, 5, "IALS + PPO, 1 to 50 agents on a rank; with the published network"
    ),
    "traffic-learner": Part("bench_rates", 30, 5, "IALS + PPO, 1 to 25 agents on a rank; SUMO's share"),
    "warehouse-simulators": Part("bench_rates", 20, 5, "local simulator and IALS without learning"),
    "traffic-simulators": Part("bench_rates", 50, 5, "1 to 200 tiles over libsumo; IALS without learning"),
    "traffic-traci": Part("bench_rates", 70, 5, "1 to 200 tiles over traci"),
    "warehouse-gs": Part("bench_rates", 50, 5, "global simulator, alone and with the joint policy"),
    "traffic-gs": Part("bench_rates", 60, 5, "global simulator, alone and with the joint policy"),
    "aip-training": Part("bench_rates", 90, 5, "influence predictors, 1 to 100 agents on a rank"),
    "roofline": Part("bench_rates", 50, 5, "PPO update in GFLOP/s, beside a matrix product"),
    "aip-round": Part("bench_runs", 110, 1, "collecting and training with 4 and 100 agents, on all cores"),
    "warehouse-weak-scaling": Part("bench_runs", 90, 1, "2 to 26 ranks, one agent each: speed, and what waiting costs"),
    "traffic-weak-scaling": Part("bench_runs", 90, 1, "2 to 26 ranks, one agent each: speed, and what waiting costs"),
    "start-up": Part("bench_runs", 100, 1, "of 2 and 26 ranks"),
    "memory": Part("bench_runs", 60, 3, "of a rank that trains one agent, in the default layout"),
    "halo": Part("bench_runs", 20, 5, "rows of neighbours on other ranks, beside MPI's own exchange on graphs"),
    "checkpoint": Part("bench_runs", 20, 1, "seconds and bytes, 4 to 100 agents on three ranks"),
    "warehouse-training": Part("bench_runs", 55, 1, "core-seconds to the published final return"),
    "traffic-training": Part("bench_runs", 120, 1, "core-seconds to the published final return"),
}


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    p.add_argument("parts", metavar="PART", nargs="*", help="what to measure (all)")
    p.add_argument("--list", action="store_true", help="name the parts, with about how long they take, and end")
    p.add_argument("--repeats", type=at_least(1), metavar="N", help="per figure (5; of whole runs 1 or 3, see --list)")
    p.add_argument("--seconds", type=_positive, default=USUAL_SECONDS, metavar="S", help="per repeat of a rate (0.5)")
    p.add_argument("--most", type=at_least(1), metavar="N", help="leave out more agents, lights, tiles or ranks than N")
    p.add_argument("--instructions", action="store_true", help="count them, too, per step of a rate (by perf)")
    p.add_argument("--folder", type=Path, help="where runs and checkpoints are written (the temporary folder)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures and their values; after each part")
    p.add_argument("--from", type=Path, metavar="FILE", dest="source", help="show the figures of such a file instead")
    p.add_argument("--against", type=Path, metavar="FILE", help="compare with the figures of such a file")
    return p


def _positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return float(text)


def work(arguments: argparse.Namespace) -> None:
    if arguments.list:
        for name, part in PARTS.items():
            time_ = f"{part.seconds / 60:.0f} min" if part.seconds >= 120 else f"{part.seconds:.0f} s"
            print(f"{name:24}{time_:>6}  {part.repeats} ×  {part.what}")
        return
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        raise UserError(f"{unknown[0]}: no such part; choose among {', '.join(PARTS)}")
    if arguments.source and (arguments.parts or arguments.json):
        raise UserError(f"--from {arguments.source}: nothing is measured; leave out parts and --json")
    for folder in (arguments.folder, arguments.json and arguments.json.resolve().parent):
        if folder and not folder.is_dir():
            raise UserError(f"{folder}: no such folder; make it first")
    before = read(arguments.against) if arguments.against else None
    if arguments.source:
        now = read(arguments.source)
        for part in dict.fromkeys(figure["part"] for figure in now["figures"]):
            print_part(part, [figure for figure in now["figures"] if figure["part"] == part])
    else:
        now = measure(arguments)
    if before:
        print_comparison(before, now)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the parts, prints each as it ends, writes the file; returns what that holds."""
    parts = {name: part for name, part in PARTS.items() if name in (arguments.parts or PARTS)}
    options = Options(arguments.seconds, arguments.most or math.inf, arguments.folder, arguments.instructions)
    if options.instructions:
        check_counter()
    results = {
        "schema": _SCHEMA,
        "schema_version": _SCHEMA_VERSION,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": git_revision(),
        "machine": machine(),
        "versions": versions(),
        "seconds": arguments.seconds,
        "figures": [],
        "notes": options.notes,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what it has started ends with it
    load = results["machine"]["load_before"]
    if load > _IDLE:
        options.notes.append(f"the machine is not idle (load {load:.1f} before): whatever is in wall time suffers")
    progress = Progress(parts)
    for name, part in parts.items():
        repeats = arguments.repeats or part.repeats
        figures: list[tuple[Figure, list[float]]] = []
        with ExitStack() as stack:
            function = getattr(importlib.import_module(part.module), name.replace("-", "_"))
            progress.begin(name)
            measurements = function(options, stack)
            values: dict[str, list[float]] = {figure.name: [] for m in measurements for figure in m.figures}
            for repeat in range(repeats):
                for i, measurement in enumerate(measurements):
                    progress.at((repeat + i / len(measurements)) / repeats)
                    for key, value in measurement.once():
                        values[key].append(value)
            figures = [(figure, values[figure.name]) for m in measurements for figure in m.figures]
        progress.end()
        rows = [row(name, *figure) for figure in figures if figure[1]]
        results["figures"] += rows
        print_part(name, rows)
        if arguments.json:
            write(arguments.json, results)
    tell(NAME, options.notes)
    return results


def row(part: str, figure: Figure, values: list[float]) -> dict[str, Any]:
    """A figure as it stands in the file."""
    return {
        "part": part,
        **asdict(figure),
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": values,
    }


def machine() -> dict[str, Any]:
    model = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg()[0],
    }


def write(path: Path, results: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    replace_durably(temporary, path)


def read(path: Path) -> dict[str, Any]:
    """What `--json` wrote.

    Raises:
        UserError: it is something else.
    """
    remedy = "give a file that --json wrote"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged, or no JSON ({error}); {remedy}") from error
    if not isinstance(results, dict) or results.get("schema") != _SCHEMA:
        raise UserError(f"{path}: no benchmark figures; {remedy}")
    if results.get("schema_version") != _SCHEMA_VERSION:
        raise UserError(f"{path}: of schema version {results.get('schema_version')}, not {_SCHEMA_VERSION}; {remedy}")
    keys = {"part", "median", "low", "high", "values", *Figure.__dataclass_fields__}
    for figure in results.get("figures", ()):
        if missing := sorted(keys - figure.keys()):
            raise UserError(f"{path}: a figure has no {missing[0]!r}; {remedy}")
    return results


def print_part(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name + (': ' + PARTS[name].what if name in PARTS else '')}")
    print(f"  {'':44}{'median':>9} {'spread':>19}  {'published':>9}{'×':>7}  target")
    above = None
    for r in rows:
        label = r["name"]
        if above and label.startswith(f"{above}: "):
            label = f"– {label.removeprefix(f'{above}: ')}"
        else:
            above = label
        beside, target = f"{'':16}", ""
        if r["published"] is not None:
            factor = r["median"] / r["published"] if r["better"] == "higher" else r["published"] / r["median"]
            beside = f"{short(r['published']):>9}{factor:7.1f}"
        if r["target"] is not None:
            met = r["median"] >= r["target"] if r["better"] == "higher" else r["median"] <= r["target"]
            target = f"{'≥' if r['better'] == 'higher' else '≤'} {short(r['target'])}: {'met' if met else 'missed'}"
        spread = f"{short(r['low'])}–{short(r['high'])}" if len(r["values"]) > 1 else ""
        line = f"  {label:44}{short(r['median']):>9} {spread:>19}  {beside}  {target:20} {r['unit']}"
        print(line.rstrip(), flush=True)


def print_comparison(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Ratios of the figures that both have; figures that one of them lacks, among the parts that both have."""
    old, new = ({(r["part"], r["name"]): r for r in results["figures"]} for results in (before, now))
    print("\ncompared")
    for name, results in (("old", before), ("new", now)):
        print(f"  {name}: {results['date']}, {results['commit'] or 'no commit'}, {results['machine']['processor']}")
    if before["machine"]["processor"] != now["machine"]["processor"]:
        print("  Two kinds of machine: speeds cannot be compared.")
    print(f"  {'':58}{'old':>9}{'new':>9}{'new/old':>9}")
    part = None
    for key, r in new.items():
        if key in old:
            if r["part"] != part:
                part = r["part"]
                print(f"  {part}")
            o = old[key]
            ratio = r["median"] / o["median"] if o["median"] else math.nan
            text = verdict(o, r) + (f" ({o['about']} → {r['about']})" if o["about"] != r["about"] else "")
            print(f"    {r['name']:56}{short(o['median']):>9}{short(r['median']):>9}{ratio:9.3f}  {text}".rstrip())
    shared = {part for part, _ in old} & {part for part, _ in new}
    for name, here, there in (("old", old, new), ("new", new, old)):
        for part, figure in there:
            if part in shared and (part, figure) not in here:
                print(f"  {part}: {figure}: missing in {name}")
    for name, here, there in (("old", old, new), ("new", new, old)):
        for part in dict.fromkeys(part for part, _ in there if part not in {p for p, _ in here}):
            print(f"  {part}: missing in {name}, the whole part")


def verdict(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Empty if the spreads overlap."""
    if len(old["values"]) < 2 or len(new["values"]) < 2:
        return "a single value: no spread" if old["median"] != new["median"] else ""
    if new["low"] <= old["high"] and old["low"] <= new["high"]:
        return ""
    if new["better"] == "neither":
        return "differs"
    return "better" if (new["median"] > old["median"]) == (new["better"] == "higher") else "WORSE"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Progress:
    """Where the measuring is, and when it may end: one line that changes on a terminal, a line per part elsewhere."""

    def __init__(self, parts: dict[str, Part]):
        self._parts = parts
        self._seconds = [part.seconds for part in parts.values()]
        self._begin = time.monotonic()
        self._number = -1

    def begin(self, name: str) -> None:
        self._number += 1
        self._name = name
        if not sys.stderr.isatty():
            self._show(0.0, "\n")

    def at(self, share: float) -> None:
        """Share of the part that is done."""
        if sys.stderr.isatty():
            self._show(share, "")

    def end(self) -> None:
        if sys.stderr.isatty():
            print(_CLEAR_LINE, end="", file=sys.stderr)

    def _show(self, share: float, end: str) -> None:
        elapsed = time.monotonic() - self._begin
        done = sum(self._seconds[: self._number]) + share * self._seconds[self._number]
        left = sum(self._seconds) - done
        eta = clock_time(elapsed / done * left if done else left)  # before the first repeat: as they usually take
        line = f"[{clock_time(elapsed)}] {self._name}, part {self._number + 1} of {len(self._parts)}, ETA {eta}"
        print(f"{'' if end else _CLEAR_LINE}{line}", end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    return run_tool(parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
