"""One run on one communicator, from arguments to the closing summary."""

import argparse
import functools
import os
import platform
import time
from pathlib import Path

from dials_mpi import cli
from dials_mpi.config import Configuration, from_values, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.failure import AbortOnException
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.waiting import wait
from dials_mpi.runs.clock import Clock, format_summary
from dials_mpi.runs.directory import RunDirectory, record_failure
from dials_mpi.simulators.conformance import check_domain, check_start
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import BUILT_IN, make_domain

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
            outcome = _agree(comm, arguments)
        if not isinstance(outcome, UserError):
            _work(comm, clock, guard, *outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return 0


def _work(comm, clock: Clock, guard: AbortOnException, values: dict, directory: RunDirectory | None, path: str | None):
    with clock("start"):
        if path:
            guard.record = functools.partial(record_failure, Path(path), comm.rank)
        configuration = from_values(values)
        domain = make_domain(configuration.env, configuration.agents, configuration.domain)
        domain.scratch = Path(path) / "scratch" if path else None
        layout = Layout(configuration.agents, comm.size)
        cores = _cores(comm)
        if path is None:
            _dry_run(comm, configuration, domain, layout, cores)
            return

        import torch

        from dials_mpi.algorithms import BY_MODE
        from dials_mpi.algorithms.session import Record, Session

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        record = Record(directory, configuration, domain) if directory else None
        if record:
            record.progress.say(f"{directory.path}: {configuration.mode} on {domain.name}, {layout}")
        session = Session(comm, configuration, domain, layout, clock, record, Path(path) / "influence")
    BY_MODE[configuration.mode](session)
    summary = session.close(cores)
    if summary:
        print(format_summary(summary))
        print(f"results in {directory.path}", flush=True)


def _cores(comm) -> int:
    """Cores that the ranks of `comm` may use together, on all their machines."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    wait(comm.Ibarrier())
    return len({(host, core) for host, cores in comm.allgather((platform.node(), list(mine))) for core in cores})


def _agree(comm, arguments: argparse.Namespace) -> UserError | tuple[dict, RunDirectory | None, str | None]:
    """Rank 0 reads the configuration and makes the run directory; all ranks get the same outcome, good or bad.

    Returns:
        What is wrong with the input; or the configuration's values, the run directory (rank 0 only) and its path (all
        ranks; None in a dry run).
    """
    outcome = directory = None
    if comm.rank == 0:
        try:
            configuration = resolve(cli.layers(arguments), comm.size - 1 or _AGENTS_IN_ONE_PROCESS)
            domain = make_domain(configuration.env, configuration.agents, configuration.domain)
            layout = Layout(configuration.agents, comm.size)
            _check_together(configuration, domain)
            if arguments.dry_run or configuration.env not in BUILT_IN:  # the tests check what is built in
                check_domain(domain)
            else:
                check_start(domain)
            if not arguments.dry_run:
                path = arguments.runs / (arguments.name or _default_name(configuration, domain))
                from mpi4py import MPI

                facts = {
                    "seed": configuration.seed,
                    "ranks": comm.size,
                    "layout": str(layout),
                    "mpi_library": MPI.Get_library_version().partition("\n")[0].strip("\0 "),
                }
                directory = RunDirectory(path, configuration.to_yaml(), facts)
            outcome = configuration.model_dump(mode="json"), directory and str(directory.path.resolve())
        except UserError as error:
            outcome = error
    wait(comm.Ibarrier())  # polite, while rank 0 reads and the others are still starting
    outcome = comm.bcast(outcome, root=0)
    if isinstance(outcome, UserError):
        return outcome
    values, path = outcome
    return values, directory, path


def _check_together(configuration: Configuration, domain: Domain) -> None:
    """What neither the configuration nor the domain can see alone."""
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
    return f"{domain.name}-{configuration.agents}-{configuration.mode}-seed{configuration.seed}-{time_stamp}"


def _dry_run(comm, configuration: Configuration, domain: Domain, layout: Layout, cores: int) -> None:
    if comm.rank == 0:
        from dials_mpi.algorithms.estimate import estimate

        print(configuration.to_yaml())
        print(f"domain {domain.name}: keeps what the interface promises")
        print(estimate(configuration, domain, layout, cores), flush=True)
    wait(comm.Ibarrier())
