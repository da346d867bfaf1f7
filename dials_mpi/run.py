"""One run on one communicator, from arguments to the closing summary."""

import argparse
import functools
import importlib
import linecache
import os
import sys
import time
from pathlib import Path
from typing import Any

from dials_mpi import cli, resume
from dials_mpi.config import Configuration, from_values, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.devices import device_of_rank
from dials_mpi.parallel.failure import AbortOnException
from dials_mpi.parallel.layout import Layout, choose_layout
from dials_mpi.parallel.machines import Machines, look_around
from dials_mpi.parallel.waiting import barrier
from dials_mpi.runs.clock import Clock, format_summary
from dials_mpi.runs.directory import RunDirectory, check_name, exists, record_failure
from dials_mpi.runs.progress import clock_time
from dials_mpi.runs.stopping import EndedBySignals, StopFlag, Unfinished
from dials_mpi.runs.tensorboard import check_installed
from dials_mpi.scaling.memory import lacking
from dials_mpi.simulators.conformance import check_domain, check_start
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import BUILT_IN, env_option, make_domain
from dials_mpi.training.plan import check_counts, most_batches, plan, rounding, rounds_before

_AGENTS_IN_ONE_PROCESS = 4


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
        from dials_mpi.training.checkpointing import Resumed
        from dials_mpi.training.record import Record
        from dials_mpi.training.session import Session

        method = configuration.method.load()

        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        torch.set_num_threads(threads)
        checkpoint = Resumed(Path(resumed[0]), resumed[1]) if resumed and resumed[0] else None
        manifest = checkpoint.manifest if checkpoint else {}
        done = manifest.get("step", 0)
        if resumed and configuration.method.files:
            rounds = rounds_before(plan(configuration, domain.horizon), done)
            importlib.import_module(configuration.method.files).cut_files(Path(path), layout.agents(comm.rank), rounds)
        record = Record(directory, configuration, domain, clock, manifest) if directory else None
        if record:
            record.progress.say(f"{directory.path}: {configuration.mode} on {domain.name}, {layout}")
            if rounded := rounding(configuration, domain.horizon):
                record.progress.say(rounded)
            if resumed:
                record.progress.say(f"resumed at step {done:,} of {configuration.steps:,}")
                for name, section in configuration.sections.items():
                    if remark := section.remark(name, configuration.steps):
                        record.progress.say(f"note: {remark}")
        if directory:
            stop.watch(directory.path)
        session = Session(comm, configuration, domain, layout, clock, record, Path(path), stop, checkpoint, device)
    stopped_by, code = None, 0
    try:
        method.train(session)
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
            run_path = resume.run_path(arguments)
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
                    directory, resumed = resume.reopen(arguments, path, stored, configuration, domain, facts)
                else:
                    directory = RunDirectory(path, configuration.to_yaml(), facts, or_next=not arguments.name)
                outcome = configuration.model_dump(mode="json"), resumed, str(directory.path.resolve())
        except UserError as error:
            outcome = error
        except resume.NothingToDo as nothing:
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
    stored, named, default_agents = None, arguments.env, n_ranks - 1 or _AGENTS_IN_ONE_PROCESS
    if run_path:
        stored = resume.stored_configuration(run_path, default_agents, named)
        named, default_agents = stored.env, stored.agents
    layers = cli.layers(arguments, stored.mode if stored else None)
    if stored:
        layers = [*resume.layers_beneath(arguments, run_path, stored), *layers]
    configuration = resolve(layers, default_agents, named)
    if stored:
        resume.refuse_changes(stored, configuration, run_path)
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
        text = f"would go on with {path} from step {resume.newest_checkpoint(path, stored)[1].get('step', 0):,}"
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


def _check_together(configuration: Configuration, domain: Domain) -> None:
    """What neither the configuration nor the domain can see alone."""
    if configuration.log.tensorboard:
        check_installed()
    configuration.method.check(configuration.mode, domain)
    for section in configuration.sections.values():
        section.check(domain)
    check_counts(configuration, domain.horizon)


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
