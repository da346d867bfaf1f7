"""One run on one communicator, from arguments to the closing summary."""

import argparse
import functools
import os
import time
from pathlib import Path

from dials_mpi import cli
from dials_mpi.config import Configuration, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.failure import AbortOnException
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import wait
from dials_mpi.runs.clock import Clock, format_summary
from dials_mpi.runs.directory import RunDirectory, record_failure
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import make_domain

_AGENTS_IN_ONE_PROCESS = 4


def run(comm, arguments: argparse.Namespace) -> int:
    """Runs what the command line asks for; every rank of `comm` calls it with the same arguments.

    Args:
        comm: rank 0 coordinates; its size and `--agents` make the layout. An exception on one rank aborts it.
        arguments: from `cli.parser`.

    Returns:
        The exit code.

    Raises:
        UserError: bad input; on every rank alike.
    """
    clock = Clock()
    with AbortOnException(comm, clock) as guard:
        with clock("start"):
            configuration, directory, folder = _agree(comm, arguments)
            if folder:
                guard.record = functools.partial(record_failure, folder, comm.rank)
            domain = make_domain(configuration.env, configuration.agents, configuration.domain)
            layout = Layout(configuration.agents, comm.size)
            if arguments.dry_run:
                return _dry_run(comm, configuration, domain, layout)

            import torch

            from dials_mpi.algorithms import BY_MODE
            from dials_mpi.algorithms.session import Record, Session

            torch.set_num_threads(1)
            record = Record(directory, configuration) if directory else None
            if record:
                record.progress.say(f"{directory.path}: {configuration.mode} on {domain.name}, {layout}")
            session = Session(comm, configuration, domain, layout, clock, record, folder / "influence")
        BY_MODE[configuration.mode](session)
        summary = session.close(cores=min(comm.size, available_cores()))
        if summary:
            print(format_summary(summary))
            print(f"results in {directory.path}", flush=True)
    return 0


def available_cores() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _agree(comm, arguments: argparse.Namespace) -> tuple[Configuration, RunDirectory | None, Path | None]:
    """Rank 0 reads the configuration and makes the run directory; all ranks get the same outcome, good or bad.

    Returns:
        The configuration, the run directory (rank 0 only) and its path (all ranks; None in a dry run).
    """
    outcome = directory = None
    if comm.rank == 0:
        try:
            configuration = resolve(cli.layers(arguments), comm.size - 1 or _AGENTS_IN_ONE_PROCESS)
            domain = make_domain(configuration.env, configuration.agents, configuration.domain)
            if domain.influence is None and configuration.mode != "gs":
                raise UserError(f"mode: {configuration.mode} needs a domain with influence sources; try --mode gs")
            layout = Layout(configuration.agents, comm.size)
            if not arguments.dry_run:
                path = arguments.runs / (arguments.name or _default_name(configuration, domain))
                facts = {"ranks": comm.size, "layout": str(layout)}
                directory = RunDirectory(path, configuration.to_yaml(), facts)
            outcome = (configuration.model_dump(mode="json"), directory and str(directory.path.resolve()))
        except UserError as error:
            outcome = error
    wait(comm.Ibarrier())  # polite, while rank 0 reads and the others are still starting
    outcome = comm.bcast(outcome, root=0)
    if isinstance(outcome, UserError):
        raise outcome
    values, path = outcome
    if comm.rank:
        configuration = resolve([("rank 0", values)], values["agents"])
    return configuration, directory, path and Path(path)


def _default_name(configuration: Configuration, domain: Domain) -> str:
    time_stamp = time.strftime("%Y%m%d-%H%M%S")
    return f"{domain.name}-{configuration.agents}-{configuration.mode}-seed{configuration.seed}-{time_stamp}"


def _dry_run(comm, configuration: Configuration, domain: Domain, layout: Layout) -> int:
    if comm.rank == 0:
        from dials_mpi.algorithms.estimate import estimate
        from dials_mpi.simulators.conformance import check_domain

        print(configuration.to_yaml())
        check_domain(domain)
        print(f"domain {domain.name}: keeps what the interface promises")
        print(estimate(configuration, domain, layout, available_cores()), flush=True)
    wait(comm.Ibarrier())
    return 0
