"""What the ranks of a job have together: cores and memory of their machines."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from dials_mpi.parallel.waiting import barrier


@dataclass(frozen=True)
class Machines:
    """Where the ranks of a job run."""

    hosts: list[str]
    """Name of each rank's machine, by rank."""
    cores: int
    """That the ranks may use together."""
    memory: dict[str, float]
    """MiB that each machine has for them, by name."""


def look_around(comm) -> Machines:
    """The machines of all ranks of `comm`, the same on every rank."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    barrier(comm)
    ranks = comm.allgather((platform.node(), list(mine), memory_here()))
    memory = {}
    for host, _, mib in ranks:
        memory[host] = max(mib, memory.get(host, mib))
    cores = {(host, core) for host, cores, _ in ranks for core in cores}
    return Machines([host for host, *_ in ranks], len(cores), memory)


def memory_here(root: Path = Path("/")) -> float:
    """MiB that processes like this one may have on this machine together: what it has, or less if a cgroup says so.

    Args:
        root: of the file system.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        groups = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):  # version 2, and version 1
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            for name in ("memory.max", "memory.limit_in_bytes"):
                file = folder / name
                text = file.read_text().strip() if file.is_file() else "max"
                if text != "max":
                    limits.append(int(text))
    return min(limits) / (1 << 20)
