"""Which rank owns which agents."""

from dataclasses import dataclass

from dials_mpi.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Rank 0 coordinates; ranks 1 … R own the agents in balanced blocks of consecutive ids. One rank alone does both.

    Raises:
        UserError: more ranks than there is work for.
    """

    n_agents: int
    n_ranks: int

    def __post_init__(self):
        if self.n_ranks > self.n_agents + 1:
            raise UserError(
                f"{self.n_ranks} ranks for {self.n_agents} agents leave {self.n_ranks - self.n_agents - 1} "
                f"without work; start at most {self.n_agents + 1} (one for the global simulator, one per agent)"
            )

    def counts(self) -> list[int]:
        """Agents per rank; blocks differ by one at most."""
        if self.n_ranks == 1:
            return [self.n_agents]
        smaller, larger = divmod(self.n_agents, self.n_ranks - 1)
        return [0] + [smaller + (owner < larger) for owner in range(self.n_ranks - 1)]

    def agents(self, rank: int) -> range:
        """Ids of the agents that `rank` owns; empty for a rank 0 that only coordinates."""
        counts = self.counts()
        first = sum(counts[:rank])
        return range(first, first + counts[rank])

    def __str__(self) -> str:
        if self.n_ranks == 1:
            return f"one process: global simulator and {self.n_agents} agents"
        sizes = sorted(set(self.counts()[1:]))
        return (
            f"{self.n_ranks} ranks: rank 0 the global simulator, ranks 1-{self.n_ranks - 1} "
            f"{' or '.join(map(str, sizes))} of {self.n_agents} agents each"
        )
