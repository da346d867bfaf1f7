"""`python -m dials_mpi evaluate`: what the policies of a run earn, on its own system or on another one."""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.analysis.reading import open_run
from dials_mpi.config import parse_override, resolve, stored_layer
from dials_mpi.errors import UserError
from dials_mpi.parallel.launcher import launched_size
from dials_mpi.runs.directory import versions
from dials_mpi.runs.progress import Progress
from dials_mpi.simulators.grid import counterparts
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import make_domain
from dials_mpi.training.plan import evaluation_at


def evaluate(arguments: argparse.Namespace) -> int:
    """Does what `cli.evaluation_parser` offers, in this process; returns the exit code.

    Raises:
        UserError: bad input.
    """
    if launched_size() > 1:
        raise UserError(f"evaluate: works in one process, not in {launched_size()}; start it without mpirun or srun")
    run = open_run(arguments.run)
    if arguments.out:  # before the work
        _check_writable(arguments.out, run.path)
    stored = [stored_layer(run.path / "config.yaml", run.configuration)]
    trained_on = resolve(stored, 1, arguments.env)
    trained_domain = make_domain(trained_on.env, trained_on.agents, trained_on.domain)
    c = resolve([*stored, *_changes(arguments)], 1, arguments.env)
    domain = make_domain(c.env, c.agents, c.domain)
    _check_same_sizes(trained_domain, domain)

    from dials_mpi.training.evaluation import evaluate_actor, evaluate_controller, joint_actor, load_rows

    file, step, rows = load_rows(run.path, arguments.best, arguments.checkpoint)
    joint_actor(file, trained_on, trained_domain, rows)  # whether they are the run's
    placement = counterparts(domain.grid_shape, trained_domain.grid_shape)
    _check_same_kinds(trained_domain, domain, placement)
    actor = joint_actor(file, c, domain, {name: stack[placement] for name, stack in rows.items()})
    episodes, copies = evaluation_at(trained_on, trained_domain.horizon, step)
    episodes = arguments.episodes or episodes
    seed = trained_on.seed + 1 if arguments.seed is None else arguments.seed
    controllers = () if arguments.no_references else domain.controllers

    plays = 1 + len(controllers)
    total = plays * domain.horizon * -(-episodes // copies)
    progress = Progress(total, domain.n_agents * min(copies, episodes), what="joint steps")
    tick = functools.partial(_tick, progress, iter(range(1, total + 1)))
    progress.say(
        f"{file}, step {step:,}: {domain.name} with {_sizes(domain, trained_domain)}, {episodes} episodes, seed {seed}"
    )
    try:
        returns = evaluate_actor(domain, actor, episodes, seed, step, copies, tick, arguments.argmax)
        progress.say(f"policies: return {returns}")
        references = {}
        for controller in controllers:
            references[controller] = evaluate_controller(domain, controller, episodes, seed, copies, tick)
            progress.say(f"hand-coded reference, {controller}: return {references[controller]}")
    finally:
        progress.close()
    if arguments.out:
        results = {
            "run": str(run.path),
            "policies": str(file),
            "step": step,
            "domain": domain.name,
            "domain_settings": c.domain.model_dump(mode="json"),
            "agents": domain.n_agents,
            "trained_agents": trained_on.agents,
            "placement": placement.tolist(),
            "seed": seed,
            "argmax": arguments.argmax,
            "evaluate": returns.as_record(),
            "references": {name: result.as_record() for name, result in references.items()},
            "versions": versions(),
        }
        _write(arguments.out, results)
    return 0


def _changes(arguments: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Configuration layers on top of the run's own."""
    layers = [("--agents", {"agents": arguments.agents})] if arguments.agents is not None else []
    for text in arguments.overrides:
        values = parse_override(text)
        if set(values) != {"domain"}:
            raise UserError(f"--set {text}: only settings of the domain can be other than the run's, domain.KEY=VALUE")
        layers.append((f"--set {text}", values))
    return layers


def _check_same_sizes(trained: Domain, other: Domain) -> None:
    for attribute in ("observation_size", "n_actions", "action_size"):
        before, now = getattr(trained, attribute), getattr(other, attribute)
        if before != now:
            raise UserError(
                f"{other.name}: {attribute} is {now} there, but {before} in the run: its policies do not fit"
            )


def _check_same_kinds(trained: Domain, other: Domain, placement: np.ndarray) -> None:
    if other.kinds is None:
        return
    for agent, (kind, origin) in enumerate(zip(other.kinds, placement, strict=True)):
        if trained.kinds[origin] != kind:
            raise UserError(
                f"{other.name}: agent {agent} would act by the policy of the run's agent {origin}, which is of another "
                "kind; evaluate with the run's number of agents"
            )


def _sizes(domain: Domain, trained: Domain) -> str:
    if domain.grid_shape == trained.grid_shape:
        return f"{domain.n_agents} agents"
    here, there = ("×".join(map(str, d.grid_shape)) for d in (domain, trained))
    return f"{domain.n_agents} agents ({here}) by policies trained on {there}"


def _tick(progress: Progress, steps) -> None:
    progress.reached(next(steps))


def _check_writable(file: Path, run: Path) -> None:
    if run.resolve() in file.resolve().parents:
        raise UserError(f"--out: {file} is in the run, which is only read; choose a place outside it")
    if file.is_dir():
        raise UserError(f"--out: {file} is a folder; name a file")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"--out: {file.parent} is no folder that can be written")


def _write(file: Path, results: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {file}: cannot be written ({error.strerror})") from error
