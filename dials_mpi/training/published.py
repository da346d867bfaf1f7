"""What owners publish for acting together: named stacks of rows, which collectors see as of the last gather."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from dials_mpi.parallel.exchange import Exchange
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.shared_rows import SharedRows


class Published:
    """One rank's part. All ranks call the same methods in the same order.

    Args:
        comm: all ranks of the run.
        exchange: joins them.
        layout: who owns which agents, and who collects.
        clock: books the phase `gather`.
    """

    def __init__(self, comm, exchange: Exchange, layout: Layout, clock):
        self._comm = comm
        self._exchange = exchange
        self._layout = layout
        self._clock = clock
        self._mine: dict[str, Tensor] = {}
        self._joint: dict[str, SharedRows] = {}
        self.shapes: dict[str, Mapping[str, tuple[int, int]]] = {}
        """Names and shapes of the parameters in a row, by the stack's name."""

    def add(self, name: str, rows: Tensor, shapes: Mapping[str, tuple[int, int]]) -> None:
        """From the next `gather` on collectors see the rows of all agents under this name.

        Args:
            rows: [A, P] float32, of this rank's agents.
            shapes: names and shapes of the parameters in a row, in their order.
        """
        self._mine[name] = rows
        self.shapes[name] = shapes
        self._exchange.barrier()
        self._joint[name] = SharedRows(self._comm, self._layout.collectors, (self._layout.n_agents, rows.shape[1]))

    def gather(self) -> None:
        """Owners → collectors: `rows` become those as they are now."""
        for name, joint in self._joint.items():
            self._exchange.gather_rows(self._mine[name].cpu().numpy(), joint.rows, joint.hosts)
            with self._clock("gather"):
                joint.publish()

    @property
    def rows(self) -> dict[str, np.ndarray] | None:
        """[N, P] float32 by name, as of the last `gather`; None on ranks that do not collect. Only to be read."""
        rows = {name: joint.rows for name, joint in self._joint.items()}
        return None if any(stack is None for stack in rows.values()) else rows

    def close(self) -> None:
        """Gives the collectors' memory back: nobody may look at `rows` any more."""
        for joint in self._joint.values():
            joint.close()
