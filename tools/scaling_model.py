#!/usr/bin/env python3
"""What runs take on more ranks, cores and machines than are at hand, from what their work costs on one core here.

    python tools/scaling_model.py --env warehouse --write costs.json    measures, keeps the costs, predicts
    python tools/scaling_model.py --env warehouse --costs costs.json --agents 25 100 --ranks 3 26 --interval 200000
    python tools/scaling_model.py --check runs/NAME                     predicted against measured, phase by phase
    python tools/scaling_model.py --config traffic_large --cluster 64     1,024 and 10,000, each on a core

Columns: ranks, collectors and F of the run; hours; agent-steps per second of all agents; the share of all cores' time
that is learning; MiB of rank 0, of the owner of the largest block and of the fullest machine; the phase or resource
that limits. A * marks costs of sizes beyond those measured, which go on in proportion to a line through them.

Measuring takes a minute or two and wants an idle machine. Not in the model: writing, barriers, MPI's own start,
cores of different speed. dials_mpi/scaling/model.py says what is.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

from dials_mpi.algorithms.registry import METHODS  # noqa: E402
from dials_mpi.analysis import results  # noqa: E402
from dials_mpi.analysis.offline import Parser, run_tool, tell  # noqa: E402
from dials_mpi.analysis.reading import Run, open_run  # noqa: E402
from dials_mpi.cli import CONFIG_HELP, ENV_HELP, at_least, layers, number, path  # noqa: E402
from dials_mpi.config import Configuration, resolve, stored_layer  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.parallel.layout import Layout, choose_layout  # noqa: E402
from dials_mpi.runs.clock import LEARNING  # noqa: E402
from dials_mpi.runs.progress import clock_time  # noqa: E402
from dials_mpi.scaling.measuring import measure  # noqa: E402
from dials_mpi.scaling.model import PHASES, Cluster, Costs, Prediction, predict  # noqa: E402
from dials_mpi.simulators.registry import BUILT_IN, make_domain  # noqa: E402
from dials_mpi.training.plan import most_batches  # noqa: E402

NAME = "scaling_model"
_MEASURED_AGENTS = (4, 25, 49, 100)
_MEASURED_BLOCKS = (1, 4, 25)
_MANY_AGENTS = (1024, 10_000)


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    p.add_argument("--env", help=ENV_HELP)
    p.add_argument("--mode", choices=tuple(METHODS), help="where agents learn (dials)")
    p.add_argument("--steps", type=at_least(1), metavar="N", help="training steps per agent")
    p.add_argument("--config", type=path, action="append", default=[], metavar="FILE", help=CONFIG_HELP)
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting")
    p.add_argument(
        "--agents", type=at_least(1), nargs="+", metavar="N", help=f"numbers of agents ({_words(_MEASURED_AGENTS)})"
    )
    p.add_argument(
        "--ranks", type=at_least(1), nargs="+", metavar="R", help="numbers of ranks (2, 3, 5 and then up to agents + 1)"
    )
    p.add_argument(
        "--collectors", type=at_least(1), nargs="+", metavar="K", help="numbers of collectors (as a run chooses them)"
    )
    p.add_argument(
        "--interval", type=at_least(1), nargs="+", metavar="F", help="steps between two AIP trainings (configuration's)"
    )
    p.add_argument("--cores", type=at_least(1), metavar="C", help="per machine (those here)")
    p.add_argument("--machines", type=at_least(1), default=1, metavar="M", help="of one kind (1)")
    p.add_argument("--memory", type=number(0.1), metavar="GIB", help="per machine (no limit; with --cluster 2 a core)")
    p.add_argument("--bandwidth", type=number(1e-3), default=10.0, metavar="GB/S", help="of a machine's line (10)")
    p.add_argument("--latency", type=number(0.0), default=5.0, metavar="US", help="microseconds per message (5)")
    p.add_argument("--costs", type=Path, metavar="FILE", help="costs written earlier, instead of measuring")
    p.add_argument("--write", type=Path, metavar="FILE", help="write the costs that were measured")
    p.add_argument(
        "--measure",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="numbers of agents that are measured (those of --agents up to 100)",
    )
    p.add_argument(
        "--check", type=Path, nargs="+", metavar="RUN", help="compare with finished runs (--env as for evaluate)"
    )
    p.add_argument(
        "--cluster", type=at_least(1), metavar="CORES", help="1,024 and 10,000 agents on machines with so many cores"
    )
    p.add_argument("--json", action="store_true", help="print everything as JSON")
    return p


def work(arguments: argparse.Namespace) -> None:
    if arguments.check:
        result = check(arguments)
    elif not (arguments.env or arguments.config):
        raise UserError(f"--env: no domain given; try --env {' or --env '.join(BUILT_IN)}, or --check RUN")
    else:
        result = tables(arguments)
    if arguments.json:
        print(json.dumps(result, indent=1))


def tables(a: argparse.Namespace) -> dict[str, Any]:
    """Predicts and, unless JSON is wanted, prints tables; returns their rows."""
    agents = a.agents or list(_MEASURED_AGENTS)
    configurations = {n: _configuration(a, n) for n in agents}
    costs = _costs(a, configurations)
    machine = Cluster(a.cores or _cores_here(), a.machines, a.bandwidth * 1e9, a.latency * 1e-6, _memory(a))
    rows = []
    for n, configuration in configurations.items():
        for ranks in a.ranks or [r for r in (1, 2, 3, 5, 9, 26, 50, 101) if r <= n + 1]:
            if ranks > n + 1 and len(agents) > 1:  # of use to the other numbers of agents
                continue
            rows += _rows(a, configuration, ranks, costs, machine)
    result = {"costs": costs.as_record(), "predictions": rows}
    if not a.json:
        print(_described(costs))
        print(f"\n{machine.machines} × {machine.cores} cores")
        _print(rows)
    if a.cluster:
        memory = (a.memory or 2.0 * a.cluster) * 1024
        rows = []
        for n in _MANY_AGENTS:
            cluster = Cluster(a.cluster, -(-n // a.cluster), a.bandwidth * 1e9, a.latency * 1e-6, memory)
            rows += _rows(a, _configuration(a, n), n, costs, cluster)
        result["cluster"] = rows
        if not a.json:
            print(f"\none agent per core, {a.cluster} cores and {memory / 1024:g} GiB per machine")
            _print(rows)
            for row in rows:
                shares = sorted(row["seconds"].items(), key=lambda item: -item[1])
                shares = ", ".join(f"{phase} {s / row['total']:.0%}" for phase, s in shares if s > 0.005 * row["total"])
                print(f"{row['agents']:,} agents, {row['collectors']} collectors, F = {row['interval']:,}: {shares}")
                print(f"  what limits first: {row['limit']}; what would lift it: {row['remedy']}")
    return result


def _rows(a: argparse.Namespace, c: Configuration, ranks: int, costs: Costs, cluster: Cluster) -> list[dict[str, Any]]:
    """A prediction for each number of collectors and interval."""
    rows = {}
    for interval in a.interval or [c.predictor.interval]:
        changed = c.model_copy(update={"predictor": c.predictor.model_copy(update={"interval": interval})})
        for collectors in a.collectors or ["auto"]:
            layout = _layout(changed, ranks, costs.horizon, cluster, collectors)
            prediction = predict(changed, layout, costs, cluster)
            row = {
                "agents": c.agents,
                "ranks": ranks,
                "cores": cluster.cores,
                "machines": cluster.machines,
                "collectors": layout.n_collectors,
                "interval": interval,
                **prediction.as_record(),
                "extrapolated": costs.extrapolated(layout),
            }
            rows[layout.n_collectors, interval] = row
    return list(rows.values())


def _layout(c: Configuration, ranks: int, horizon: int, cluster: Cluster, collectors) -> Layout:
    cores, works = cluster.cores * cluster.machines, c.parallel.coordinator_works
    if collectors == "auto":
        collectors = c.parallel.collectors
    return choose_layout(c.agents, ranks, cores, most_batches(c, horizon), works, collectors)


def check(a: argparse.Namespace) -> dict[str, Any]:
    """Compares finished runs with what the model says of them.

    Raises:
        UserError: a run has not come to its end in one go.
    """
    given = Costs.read(a.costs) if a.costs else None
    compared = []
    for run in map(open_run, a.check):
        configuration, layout, cluster = _of_run(run, a)
        costs = given
        if costs is None:
            domain = make_domain(configuration.env, configuration.agents, configuration.domain)
            costs = measure(configuration, domain, [configuration.agents], [max(layout.counts())], _say)
        costs.check(configuration, f"{a.costs or 'costs'}, for {run.path}")
        prediction = predict(configuration, layout, costs, cluster)
        phases = {name: {"predicted": pair[0], "measured": pair[1]} for name, pair in _pairs(run, prediction).items()}
        compared.append(
            {
                "run": str(run.path),
                "layout": str(layout),
                "cores": cluster.cores,
                "phases": phases,
                "extrapolated": costs.extrapolated(layout),
            }
        )
        if not a.json:
            _print_check(compared[-1])
    return {"check": compared}


def _of_run(run: Run, a: argparse.Namespace) -> tuple[Configuration, Layout, Cluster]:
    summary, ranks = run.facts.get("summary"), run.facts.get("ranks")
    if run.state != "finished" or not summary or not ranks:
        raise UserError(f"--check: {run.path} is {run.state} and has no closing summary; choose a finished run")
    if run.facts.get("resumed"):
        raise UserError(f"--check: {run.path} was resumed, and its summary is of a part; choose a run in one go")
    c = resolve([stored_layer(run.path / "config.yaml", run.configuration)], 1, a.env)
    domain = make_domain(c.env, c.agents, c.domain)
    # More than the ranks could keep busy would make no difference to them.
    cores = -(-results.cores(run) // a.machines)
    cluster = Cluster(cores, a.machines, a.bandwidth * 1e9, a.latency * 1e-6)
    layout = _layout(c, ranks, domain.horizon, cluster, "auto")
    if str(layout) != run.facts.get("layout"):
        tell(NAME, [f"{run.path}: its layout was {run.facts.get('layout')!r}; predicted is {layout}"])
    return c, layout, cluster


def _pairs(run: Run, prediction: Prediction) -> dict[str, tuple[float, float]]:
    """Predicted and measured seconds by phase; measured is the slowest rank's."""
    summary = run.facts["summary"]
    measured = {name: row["max_seconds"] for name, row in summary["phases"].items()}
    gs = METHODS[run.configuration["mode"]].learns_on_gs
    pairs = {}
    for phase in PHASES:
        if phase == "act":
            if gs:
                pairs["act"] = prediction.seconds["act"], measured["simulate"] + measured["act"]
        elif phase == "learn":
            parts = ("ppo_update",) if gs else LEARNING
            pairs["learn"] = prediction.seconds["learn"], sum(measured[part] for part in parts)
        elif phase == "evaluate":
            pairs["evaluate"] = prediction.evaluating, measured["evaluate"]
        else:
            pairs[phase] = prediction.seconds[phase], measured[phase]
    return {**pairs, "all": (prediction.total, summary["wall_seconds"])}


def _configuration(a: argparse.Namespace, agents: int) -> Configuration:
    named = argparse.Namespace(**{**vars(a), "agents": agents, "seed": None})
    configuration = resolve(layers(named), agents, a.env)
    make_domain(configuration.env, configuration.agents, configuration.domain)
    if not configuration.method.modelled:
        raise UserError(f"mode: nothing is known of what {configuration.mode} costs; choose another one")
    return configuration


def _costs(a: argparse.Namespace, configurations: dict[int, Configuration]) -> Costs:
    if a.costs:
        if a.write:
            raise UserError("--write: nothing is measured with --costs; leave one of them out")
        costs = Costs.read(a.costs)
    else:
        sizes = a.measure or [n for n in configurations if n <= max(_MEASURED_AGENTS)] or [min(configurations)]
        configuration = _configuration(a, max(sizes))
        blocks = [block for block in _MEASURED_BLOCKS if block <= max(sizes)]
        domain = make_domain(configuration.env, configuration.agents, configuration.domain)
        costs = measure(configuration, domain, sizes, blocks, _say)
        if a.write:
            costs.write(a.write)
    for configuration in configurations.values():
        costs.check(configuration, str(a.costs or "costs"))
    return costs


def _say(text: str) -> None:
    tell(NAME, [text])


def _memory(a: argparse.Namespace) -> float:
    return a.memory * 1024 if a.memory else math.inf


def _cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _described(costs: Costs) -> str:
    """What was measured, for people."""
    lines = [
        f"{costs.settings['env']}, costs of one core (start of a rank {costs.start:.1f} s, {costs.memory:.0f} MiB "
        f"without agents; a policy {costs.policy_bytes:,} bytes, a row of a dataset {costs.dataset_bytes})",
        f"{'agents of the system':>24}{'joint step, ms':>16}{'GS made, s':>12}{'MiB':>8}",
    ]
    step = costs.collect if costs.collect.points else costs.evaluate
    lines += [f"{n:24}{1e3 * s:16.4f}{costs.setup(n):12.3f}{costs.joint_memory(n):8.0f}" for n, s in step.points]
    lines.append(
        f"{'agents of a block':>24}{'update, ms':>16}{'epoch*, ms':>12}{'MiB':>8}  * per episode of the dataset"
    )
    lines += [
        f"{n:24}{1e3 * s:16.3f}{1e3 * costs.epoch(n):12.3f}{costs.block_memory(n):8.0f}" for n, s in costs.learn.points
    ]
    return "\n".join(lines)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'agents':>7}{'ranks':>7}{'collect':>8}{'F':>12}{'time':>10}{'agent-steps/s':>16}{'learning':>10}"
        f"{'rank 0':>8}{'owner':>7}{'machine MiB':>13}  limit"
    )
    for row in rows:
        memory, mark = row["memory"], "*" if row["extrapolated"] else " "
        print(
            f"{row['agents']:7,}{row['ranks']:7,}{row['collectors']:8}{row['interval']:12,}"
            f"{clock_time(row['total']):>10}{row['agent_steps_per_second']:15,.0f}{mark}{row['efficiency']:10.1%}"
            f"{memory['rank_0']:8,.0f}{memory['owner']:7,.0f}{memory['machine']:13,.0f}  {row['limit']}"
        )
    beyond = dict.fromkeys(text for row in rows for text in row["extrapolated"])
    if beyond:
        print(f"* extrapolated: {'; '.join(beyond)}")


def _print_check(compared: dict[str, Any]) -> None:
    cores = compared["cores"]
    print(f"{compared['run']}: {compared['layout']}, {cores} core{'s' if cores > 1 else ''}")
    print(f"  {'phase':14}{'predicted s':>12}{'measured s':>12}{'ratio':>8}")
    for name, pair in compared["phases"].items():
        ratio = f"{pair['predicted'] / pair['measured']:8.2f}" if pair["measured"] else f"{'–':>8}"
        print(f"  {name:14}{pair['predicted']:12.2f}{pair['measured']:12.2f}{ratio}")
    if compared["extrapolated"]:
        print(f"  extrapolated: {'; '.join(compared['extrapolated'])}")


def _words(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def main(arguments: list[str] | None = None) -> int:
    return run_tool(parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
