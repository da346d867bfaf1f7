"""One run on one communicator, from arguments to the closing summary."""

import argparse
import functools
import linecache
import os
import sys
import time
from pathlib import Path
from typing import Any

from dials_mpi import cli
from dials_mpi.config import MAY_CHANGE, Configuration, from_values, load_yaml, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.devices import device_of_rank
from dials_mpi.parallel.failure import AbortOnException
from dials_mpi.parallel.layout import Layout, choose_layout
from dials_mpi.parallel.machines import Machines, look_around
from dials_mpi.parallel.waiting import barrier
from dials_mpi.runs.checkpoint import MANIFEST, clear_after, newest_whole
from dials_mpi.runs.clock import Clock, format_summary
from dials_mpi.runs.directory import RunDirectory, check_name, exists, lock, read_facts, record_failure
from dials_mpi.runs.metrics import cut_back
from dials_mpi.runs.progress import clock_time
from dials_mpi.runs.stopping import STOP_FILE, EndedBySignals, StopFlag, Unfinished
from dials_mpi.runs.tensorboard import check_installed
from dials_mpi.scaling.memory import lacking
from dials_mpi.simulators.conformance import check_domain, check_start
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import BUILT_IN, env_option, make_domain
from dials_mpi.training.plan import Segment, check_counts, most_batches, plan, rounding

_AGENTS_IN_ONE_PROCESS = 4
_PATIENCE = 150.0
"""Seconds that a job which comes back waits for what is left of its last start."""


def run(comm, arguments: argparse.Namespace) -> int:
    """Runs what the command line asks for; every rank of `comm` calls it with the same arguments.

    Args:
        comm: rank 0 coordinates; its size and `--agents` make the layout. An exception on one rank aborts it.
        arguments: from `cli.parser`.

    Returns:
        The exit code, the same on all ranks.

    Raises:
        UserError: bad input; on every rank alike.
    """
    clock = Clock()
    stopping = EndedBySignals() if arguments.dry_run else StopFlag(arguments.max_hours)
    with AbortOnException(comm, clock) as guard, stopping as stop:
        with clock("start"):
            machines = look_around(comm)
            try:
                device = device_of_rank(comm, arguments.device)
                outcome = _agree(comm, arguments, machines, device)
            except UserError as error:
                outcome = error
        if isinstance(outcome, int):
            return outcome
        if not isinstance(outcome, UserError):
            return _work(comm, clock, guard, stop, machines.cores, device, *outcome)
    raise outcome


def _work(
    comm,
    clock: Clock,
    guard: AbortOnException,
    stop: StopFlag,
    cores: int,
    device: str,
    values: dict,
    resumed: tuple[str | None, dict] | None,
    path: str,
    directory: RunDirectory | None,
) -> int:
    with clock("start"):
        guard.record = functools.partial(record_failure, Path(path), comm.rank)
        configuration = from_values(values)
        domain = make_domain(configuration.env, configuration.agents, configuration.domain)
        domain.scratch = Path(path) / "scratch"
        layout = _layout(configuration, domain, comm.size, cores)

        import torch

        linecache.clearcache()  # torch leaves sources of its own there, 2 MiB
        from dials_mpi.algorithms.modes import BY_MODE
        from dials_mpi.influence.dataset import agent_file, drop_rounds
        from dials_mpi.training.checkpointing import Resumed
        from dials_mpi.training.session import Record, Session

        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        torch.set_num_threads(threads)
        checkpoint = Resumed(Path(resumed[0]), resumed[1]) if resumed and resumed[0] else None
        done = checkpoint.manifest["updates"] if checkpoint else 0
        if resumed:
            rounds = _rounds_before(plan(configuration, domain.horizon), done)
            for agent in layout.agents(comm.rank):
                drop_rounds(agent_file(Path(path) / "influence", agent), rounds)
        record = Record(directory, configuration, domain, done) if directory else None
        if record:
            record.progress.say(f"{directory.path}: {configuration.mode} on {domain.name}, {layout}")
            if rounded := rounding(configuration, domain.horizon):
                record.progress.say(rounded)
            if resumed:
                record.progress.say(f"resumed at step {configuration.steps_after(done):,} of {configuration.steps:,}")
                if configuration.ppo.anneal and configuration.steps > configuration.ppo.anneal_steps:
                    record.progress.say(
                        f"note: from step {configuration.ppo.anneal_steps:,} on, ppo.anneal_steps since the run was "
                        "made, the learning rate is 0 and nothing more is learned"
                    )
        if directory:
            stop.watch(directory.path)
        session = Session(comm, configuration, domain, layout, clock, record, Path(path), stop, checkpoint, device)
    stopped_by, code = None, 0
    try:
        BY_MODE[configuration.mode](session)
    except Unfinished as asked:
        stopped_by, code = str(asked), cli.EXIT_UNFINISHED
        if record:
            record.progress.say(
                f"stopped by {asked}; go on with --resume {directory.path}{env_option(configuration.env)}"
            )
    summary = session.close(min(cores, comm.size * threads), stopped_by)  # others than these it cannot use
    if summary:
        print(format_summary(summary))
        print(f"results in {directory.path}", flush=True)
    barrier(comm)  # a launcher may end who is left some time after the first one has gone: not rank 0, writing
    return code


def _rounds_before(segments: list[Segment], done: int) -> int:
    """Number of AIP trainings that precede the first `done` updates."""
    return len([s for s in segments if s.round is not None and s.updates.start < done])


def _check_datasets(path: Path, configuration: Configuration, rounds: int) -> None:
    """Reads what the datasets of a run are to keep, before anything of the run is touched.

    Raises:
        UserError: a file is damaged. One that is not there is mentioned, and does without its earlier rounds.
    """
    from dials_mpi.influence.dataset import agent_file, check_rounds

    for agent in range(configuration.agents if rounds else 0):
        file = agent_file(path / "influence", agent)
        if file.exists():
            check_rounds(file, rounds)
        else:
            print(f"dials_mpi: {file}: not there; goes on without its earlier rounds", file=sys.stderr, flush=True)


def _layout(configuration: Configuration, domain: Domain, n_ranks: int, cores: int) -> Layout:
    return choose_layout(
        configuration.agents,
        n_ranks,
        cores,
        most_batches(configuration, domain.horizon),
        configuration.parallel.coordinator_works,
        configuration.parallel.collectors,
    )


def _agree(comm, arguments: argparse.Namespace, machines: Machines, device: str) -> UserError | tuple | int:
    """Rank 0 reads the configuration and makes the run directory; all ranks get the same outcome, good or bad.

    Returns:
        What is wrong with the input; the exit code if there is nothing left to do, as after a dry run; or the
        configuration's values, what is resumed (None for a new run, else the path of a checkpoint, or None for the
        beginning, and its manifest), the path of the run directory and, on rank 0 only, the run directory.
    """
    outcome = directory = None
    if comm.rank == 0:
        try:
            run_path = resume_path(arguments)
            configuration, stored, domain = _configured(arguments, run_path, comm.size)
            layout = _layout(configuration, domain, comm.size, machines.cores)
            impossible = lacking(configuration, domain, layout, machines, device)
            path = run_path or (arguments.runs or cli.RUNS) / (arguments.name or _default_name(configuration, domain))
            if arguments.dry_run:
                destination = _destination(arguments, path, stored)
                _dry_run(configuration, domain, layout, machines, impossible)
                print(destination, flush=True)
                outcome = 0
            elif impossible:
                raise UserError(impossible)
            else:
                if configuration.env in BUILT_IN:  # the tests check what is built in
                    check_start(domain)
                else:
                    check_domain(domain)
                facts = _facts(comm, configuration, domain, layout)
                resumed = None
                if stored:
                    directory, resumed = _reopened(arguments, path, stored, configuration, domain, facts)
                else:
                    directory = RunDirectory(path, configuration.to_yaml(), facts, or_next=not arguments.name)
                outcome = configuration.model_dump(mode="json"), resumed, str(directory.path.resolve())
        except UserError as error:
            outcome = error
        except _NothingToDo as nothing:
            outcome, message = nothing.args
            print(message, flush=True)
    barrier(comm)  # polite, while rank 0 reads and the others are still starting
    outcome = comm.bcast(outcome, root=0)
    return outcome if isinstance(outcome, int | UserError) else (*outcome, directory)


def _configured(
    arguments: argparse.Namespace, run_path: Path | None, n_ranks: int
) -> tuple[Configuration, Configuration | None, Domain]:
    """What the command line asks for, what the run that is to go on was stored with (None for a new one), the domain.

    Args:
        run_path: of the run that is to go on, or None.

    Raises:
        UserError: bad input; changes that a resumed run must not make.
    """
    layers, stored, named = cli.layers(arguments), None, arguments.env
    default_agents = n_ranks - 1 or _AGENTS_IN_ONE_PROCESS
    if run_path:
        file = run_path / "config.yaml"
        values = (str(file), load_yaml(file))
        if "env" not in values[1]:
            raise UserError(f"{file}: no configuration of a run: it has no env; restore it")
        stored = resolve([values], default_agents, named)
        # What follows from the steps that the run was made with does not follow from those of now.
        made = (str(file), {"ppo": {"anneal_steps": stored.ppo.anneal_steps}})
        # With auto the command line stands for itself, as it did when the run was started.
        layers = [made, *layers] if arguments.resume == "auto" else [values, made, *layers]
        named, default_agents = stored.env, stored.agents
    configuration = resolve(layers, default_agents, named)
    if stored:
        refuse_changes(stored, configuration, run_path)
    by_default = None
    if all(values.get("agents") is None for _, values in layers):
        by_default = "ranks - 1" if n_ranks > 1 else "in one process"  # not of a run that goes on: its N is possible
    domain = make_domain(configuration.env, configuration.agents, configuration.domain, by_default)
    _check_together(configuration, domain)
    return configuration, stored, domain


def _destination(arguments: argparse.Namespace, path: Path, stored: Configuration | None) -> str:
    """What a dry run says of the run directory.

    Args:
        stored: the configuration of the run that would go on; None for a new run.

    Raises:
        UserError: a run of that name exists already; the one that would go on has no whole checkpoint.
    """
    if stored:
        text = f"would go on with {path} from step {_newest_checkpoint(path, stored)[1].get('step', 0):,}"
    elif arguments.name and path.exists():
        raise exists(path)
    else:
        text = f"would write {path}"
    if arguments.max_hours is not None:
        text += f"\nwould stop with a checkpoint after {arguments.max_hours:g} h"
    return text


def _facts(comm, configuration: Configuration, domain: Domain, layout: Layout) -> dict[str, Any]:
    """What `run.json` says of a start, beside what every run directory says of itself."""
    from mpi4py import MPI

    return {
        "seed": configuration.seed,
        "ranks": comm.size,
        "layout": str(layout),
        "grid_shape": list(map(int, domain.grid_shape)),
        "mpi_library": MPI.Get_library_version().partition("\n")[0].strip("\0 "),
    }


def _reopened(
    arguments: argparse.Namespace,
    path: Path,
    stored: Configuration,
    configuration: Configuration,
    domain: Domain,
    facts: dict[str, Any],
) -> tuple[RunDirectory, tuple[str | None, dict]]:
    """The directory of a run that goes on, cut back to its newest whole checkpoint, and that.

    Args:
        stored, configuration: before and now.

    Raises:
        UserError: something is damaged, or another process is at work on the run; nothing has been touched.
        _NothingToDo: it has come to its end, or a person has stopped it.
    """
    held = lock(path, _PATIENCE if arguments.resume == "auto" else 0)
    resumed = _newest_checkpoint(path, stored)
    step, done = resumed[1].get("step", 0), resumed[1].get("updates", 0)
    segments = plan(configuration, domain.horizon)
    total = segments[-1].updates.stop
    if done > total or (done == total and read_facts(path).get("state") == "finished"):
        held.close()
        raise _NothingToDo(0, f"{path} has come to step {step:,} already: nothing to do")
    if arguments.resume == "auto" and (path / STOP_FILE).exists():
        held.close()
        raise _NothingToDo(cli.EXIT_UNFINISHED, f"{path / STOP_FILE}: the run stays stopped; remove it to go on")
    _check_datasets(path, configuration, _rounds_before(segments, done))
    cut_back(path, resumed[1].get("metrics", {}))
    directory = RunDirectory.reopen(path, held, configuration.to_yaml(), step, facts)
    clear_after(path / "checkpoints", step)
    return directory, resumed


class _NothingToDo(Exception):  # noqa: N818 - no error
    """The run that is to be resumed has come to its end, or is to stay where it is: exit code, and why."""


def resume_path(arguments: argparse.Namespace) -> Path | None:
    """The run directory that is to be resumed; None for a new run.

    Raises:
        UserError: `--resume` names no run, or `--name` is none.
    """
    if arguments.name is not None:
        check_name(arguments.name, "--name:")
    if arguments.resume is None:
        return None
    if arguments.resume == "auto":
        if not arguments.name:
            raise UserError("--resume auto: give the run a --name, by which it is found again")
        path = (arguments.runs or cli.RUNS) / arguments.name
        return path if (path / "config.yaml").exists() else None
    path = Path(arguments.resume)
    if arguments.name:
        raise UserError(f"--name: the run {path} has its name already; leave it out")
    if arguments.runs:
        raise UserError(f"--runs: {arguments.runs} is of no use: --resume {path} says where the run is; leave it out")
    if not (path / "config.yaml").is_file():
        raise UserError(f"--resume: {path} is no run directory: it has no config.yaml")
    return path


def refuse_changes(stored: Configuration, wanted: Configuration, path: Path) -> None:
    """Raises UserError with every setting that differs from the run's and must not."""
    if changes := _changes(stored, wanted):
        raise UserError(f"--resume: in {path} {changes}; a resumed run may change {', '.join(MAY_CHANGE)} only")


def _changes(old: Configuration, new: Configuration) -> str:
    """In words, what differs and must not in a resumed run; empty if nothing does."""
    changes = []

    def compare(old, new, key):
        if isinstance(old, dict) and isinstance(new, dict):
            for name in sorted(old.keys() | new.keys()):
                compare(old.get(name), new.get(name), [*key, name])
        elif old != new and key[0] not in MAY_CHANGE:
            changes.append(f"{'.'.join(key)} is {old}, not {new}")

    compare(old.model_dump(mode="json"), new.model_dump(mode="json"), [])
    return "; ".join(changes)


def _newest_checkpoint(path: Path, stored: Configuration) -> tuple[str | None, dict]:
    """Path (None: go on from the beginning) and manifest of the checkpoint that a run goes on from.

    Args:
        path: the run directory.
        stored: its configuration.
    """
    checkpoint, manifest, complaints = newest_whole(path / "checkpoints")
    if checkpoint is None and (complaints or read_facts(path).get("state") in ("finished", "stopped")):
        what = f"no whole checkpoint: {complaints[0]}" if complaints else "no checkpoint any more"
        raise UserError(
            f"--resume: {path} has {what}; beginning again would lose its results: start a new run with "
            f"--config {path / 'config.yaml'}, without --resume and under another --name"
        )
    for complaint in complaints:
        print(f"dials_mpi: checkpoint passed over: {complaint}", file=sys.stderr, flush=True)
    if checkpoint:
        # Completed by this version's defaults, like the file: neither may know settings that are new.
        values = manifest["configuration"]
        if values["ppo"].get("anneal_steps") is None:  # of a version that left it open
            values = {**values, "ppo": {**values["ppo"], "anneal_steps": stored.ppo.anneal_steps}}
        made_with = resolve([(str(checkpoint / MANIFEST), values)], stored.agents, stored.env)
        if changes := _changes(made_with, stored):
            raise UserError(
                f"--resume: {path / 'config.yaml'} is not what {checkpoint} was made with ({changes}); restore it, or "
                "start a new run"
            )
    return checkpoint and str(checkpoint.resolve()), manifest


def _check_together(configuration: Configuration, domain: Domain) -> None:
    """What neither the configuration nor the domain can see alone."""
    if configuration.log.tensorboard:
        check_installed()
    logits = configuration.policy.initial_logits
    if logits is not None and len(logits) != domain.n_actions:
        raise UserError(
            f"policy.initial_logits: {len(logits)} numbers for {domain.n_actions} actions; give one for each action"
        )
    check_counts(configuration, domain.horizon)
    if configuration.mode == "gs":
        return
    if domain.influence is None:
        raise UserError(f"mode: {configuration.mode} needs a domain with influence sources; try --mode gs")
    if configuration.dataset.steps <= domain.horizon:
        raise UserError(
            f"dataset.steps: {configuration.dataset.steps} is one episode of {domain.horizon} steps; "
            f"take at least {2 * domain.horizon}, so that one can be held out"
        )


def _default_name(configuration: Configuration, domain: Domain) -> str:
    time_stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{domain.name}-{configuration.agents}-{configuration.mode}-seed{configuration.seed}-{time_stamp}"
    check_name(name, f"--name: none is given, and for {configuration.env}")
    return name


def _dry_run(
    configuration: Configuration, domain: Domain, layout: Layout, machines: Machines, impossible: str | None
) -> None:
    """Prints what a run would be, and on standard error what is being done meanwhile."""
    from dials_mpi.scaling.estimate import check, estimate

    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{clock_time(time.monotonic() - begin)}] {text}", file=sys.stderr, flush=True)

    promises = check(configuration, domain, say)
    print(configuration.to_yaml())
    print(promises)
    if rounded := rounding(configuration, domain.horizon):
        print(rounded, flush=True)
    if impossible:
        print(f"a run here would be refused: {impossible}", flush=True)
    memory = sum(machines.memory.values())
    print(estimate(configuration, domain, layout, machines.cores, memory, say), flush=True)
