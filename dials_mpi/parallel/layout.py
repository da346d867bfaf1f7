"""Which rank owns which agents, and which ranks play episodes of all agents together."""

from dataclasses import dataclass
from typing import Literal

from dials_mpi.errors import UserError

_FEWEST_AGENTS_FOR_COLLECTORS = 25
"""With fewer, a dataset takes rank 0 alone some seconds at most: 0.4 s for 4 robots, 2 s for 4 lights."""


@dataclass(frozen=True)
class Layout:
    """Ranks 1 … R own the agents in balanced blocks of consecutive ids, and rank 0 one of them if it works, too.

    One rank alone does everything.

    Raises:
        UserError: more ranks than there is work for.
    """

    n_agents: int
    n_ranks: int
    coordinator_works: bool = False
    """Whether rank 0 owns agents beside what it does for all."""
    n_collectors: int = 1
    """Ranks that run the joint policy on the global simulator, for datasets and evaluations."""

    def __post_init__(self):
        most = self.n_agents + (not self.coordinator_works)
        if self.n_ranks > most:
            rank_0 = "none for the global simulator alone" if self.coordinator_works else "one for the global simulator"
            raise UserError(
                f"{self.n_ranks} ranks for {self.n_agents} agents leave {self.n_ranks - most} "
                f"without work; start at most {most} ({rank_0}, one per agent)"
            )

    @property
    def collectors(self) -> list[int]:
        """Evenly spread over the ranks, and so over machines; rank 0 is one of them."""
        return [number * self.n_ranks // self.n_collectors for number in range(self.n_collectors)]

    def turns(self, n_batches: int) -> list[dict[int, int]]:
        """Which collector plays which of the batches, turn by turn."""
        turns = range(0, n_batches, self.n_collectors)
        return [dict(zip(self.collectors, range(first, n_batches), strict=False)) for first in turns]

    def counts(self) -> list[int]:
        """Agents per rank; blocks differ by one at most, and rank 0 has none of the larger ones if it can be helped."""
        idle = 0 if self.coordinator_works or self.n_ranks == 1 else 1
        owners = self.n_ranks - idle
        smaller, larger = divmod(self.n_agents, owners)
        return [0] * idle + [smaller + (owner >= owners - larger) for owner in range(owners)]

    def agents(self, rank: int) -> range:
        """Ids of the agents that `rank` owns; empty for a rank 0 that only coordinates."""
        counts = self.counts()
        first = sum(counts[:rank])
        return range(first, first + counts[rank])

    def __str__(self) -> str:
        if self.n_ranks == 1:
            return f"one process: global simulator and {self.n_agents} agents"
        counts = self.counts()
        sizes = " or ".join(map(str, sorted({count for count in counts if count})))
        owners = "all ranks" if counts[0] else f"ranks 1-{self.n_ranks - 1}"
        collect = f"; {self.n_collectors} ranks collect" if self.n_collectors > 1 else ""
        agents = f"{owners} {sizes} of {self.n_agents} agents each"
        return f"{self.n_ranks} ranks: rank 0 the global simulator, {agents}{collect}"


def choose_layout(
    n_agents: int,
    n_ranks: int,
    cores: int,
    n_batches: int,
    coordinator_works: bool | Literal["auto"],
    collectors: int | Literal["auto"],
) -> Layout:
    """The layout of a run; no result depends on it.

    Args:
        cores: that the ranks have together, on all their machines.
        n_batches: most batches of episodes that are ever to be played at a time.
        coordinator_works: auto: if that makes the largest block smaller and every rank has a core of its own.
        collectors: at most so many ranks; auto: one for fewer than 25 agents, else as many as there are cores.

    Raises:
        UserError: more ranks than there is work for.
    """
    if coordinator_works == "auto":
        apart = -(-n_agents // max(1, n_ranks - 1))
        coordinator_works = n_ranks <= cores and -(-n_agents // n_ranks) < apart
    if collectors == "auto":
        collectors = cores if n_agents >= _FEWEST_AGENTS_FOR_COLLECTORS else 1
    return Layout(n_agents, n_ranks, coordinator_works, min(collectors, n_ranks, n_batches))
