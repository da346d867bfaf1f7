"""One run on one communicator, from arguments to the closing summary."""

import argparse
import os
import time
from pathlib import Path

from dials_mpi import cli
from dials_mpi.config import Configuration, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.failure import abort_on_exception
from dials_mpi.parallel.launcher import check_size
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import wait
from dials_mpi.runs.clock import Clock, format_summary
from dials_mpi.runs.directory import RunDirectory
from dials_mpi.simulators.registry import make_domain

_AGENTS_IN_ONE_PROCESS = 4


def run(comm, arguments: argparse.Namespace) -> int:
    """Runs what the command line asks for; every rank of `comm` calls it with the same arguments.

    Args:
        comm: rank 0 coordinates; its size and `--agents` make the layout.
        arguments: from `cli.parser`.

    Returns:
        The exit code.

    Raises:
        UserError: bad input; on every rank alike.
    """
    clock = Clock()
    abort_on_exception(comm, lambda: clock.phase)
    check_size(comm.size)
    with clock("start"):
        configuration, directory, influence_folder = _agree(comm, arguments)
        domain = make_domain(configuration.env, configuration.agents, configuration.domain)
        layout = Layout(configuration.agents, comm.size)
        if arguments.dry_run:
            return _dry_run(comm, configuration, domain, layout)

        import torch

        from dials_mpi.algorithms import BY_MODE
        from dials_mpi.algorithms.session import Record, Session

        torch.set_num_threads(1)
        record = None
        if directory:
            abort_on_exception(comm, lambda: clock.phase, directory.path)
            record = Record(directory, configuration)
            record.progress.say(f"{directory.path}: {configuration.mode} on {domain.name}, {layout}")
        elif influence_folder:
            abort_on_exception(comm, lambda: clock.phase, influence_folder.parent)
        session = Session(comm, configuration, domain, layout, clock, record, influence_folder)
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
    """Rank 0 reads the configuration and makes the run directory; all ranks get the same outcome, good or bad."""
    outcome = directory = None
    if comm.rank == 0:
        try:
            default_agents = comm.size - 1 or _AGENTS_IN_ONE_PROCESS
            configuration = resolve(cli.layers(arguments), default_agents)
            domain = make_domain(configuration.env, configuration.agents, configuration.domain)
            if domain.influence is None and configuration.mode != "gs":
                raise UserError(f"mode: {configuration.mode} needs a domain with influence sources; try --mode gs")
            layout = Layout(configuration.agents, comm.size)
            if not arguments.dry_run:
                name = arguments.name or (
                    f"{domain.name}-{configuration.agents}-{configuration.mode}-seed{configuration.seed}-"
                    f"{time.strftime('%Y%m%d-%H%M%S')}"
                )
                directory = RunDirectory(
                    arguments.runs / name, configuration.to_yaml(), {"ranks": comm.size, "layout": str(layout)}
                )
            outcome = (configuration.model_dump(mode="json"), directory and str(directory.influence.resolve()))
        except UserError as error:
            outcome = error
    wait(comm.Ibarrier())  # polite, while rank 0 reads and the others are still starting
    outcome = comm.bcast(outcome, root=0)
    if isinstance(outcome, UserError):
        raise outcome
    values, influence_folder = outcome
    if comm.rank:
        configuration = resolve([("rank 0", values)], values["agents"])
    return configuration, directory, influence_folder and Path(influence_folder)


def _dry_run(comm, configuration: Configuration, domain, layout: Layout) -> int:
    if comm.rank == 0:
        from dials_mpi.algorithms.estimate import estimate

        print(configuration.to_yaml())
        print(estimate(configuration, domain, layout, available_cores()), flush=True)
    wait(comm.Ibarrier())
    return 0
