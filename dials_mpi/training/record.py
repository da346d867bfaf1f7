"""What rank 0 alone keeps of a run while it goes on: its files, and the progress shown."""

from typing import Any

import numpy as np

from dials_mpi.analysis.reading import open_run
from dials_mpi.config import Configuration
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.directory import RunDirectory
from dials_mpi.runs.metrics import Metrics
from dials_mpi.runs.progress import Progress
from dials_mpi.runs.tensorboard import TensorBoard
from dials_mpi.simulators.interface import Domain
from dials_mpi.training.plan import plan


class Record:
    """Of one run.

    Args:
        directory: of the run.
        clock: of rank 0; books the phase `write`.
        manifest: of the checkpoint that the run goes on from; empty for a new one.
    """

    def __init__(
        self, directory: RunDirectory, configuration: Configuration, domain: Domain, clock: Clock, manifest: dict
    ):
        total = plan(configuration, domain.horizon)[-1].stop
        self.directory = directory
        self._clock = clock
        self._earlier_seconds = manifest.get("seconds", 0.0)
        self._metrics = Metrics(directory.path)
        self._tensorboard = None
        if configuration.log.tensorboard:
            past = open_run(directory.path).records
            self._tensorboard = TensorBoard(directory.path / "tensorboard", past[-1]["seconds"] if past else 0.0, past)
        self.progress = Progress(total, configuration.agents, manifest.get("step", 0))
        self.reference: np.ndarray | None = None
        """`Run.best_reference`; once the references have been played."""

    def write(self, step: int, phase: str, **values: Any) -> None:
        """One record; see `Metrics.write`."""
        with self._clock("write"):
            seconds = self._seconds
            self._metrics.write(step, phase, seconds, **values)
            if self._tensorboard:
                self._tensorboard.write(step, phase, seconds, **values)

    def facts(self) -> dict[str, Any]:
        """What has to be known of it when the run is resumed."""
        return {"seconds": self._seconds, "metrics": self._metrics.written()}

    def close(self) -> None:
        self._metrics.close()
        self.progress.close()
        if self._tensorboard:
            self._tensorboard.close()

    @property
    def _seconds(self) -> float:
        """Into the run, without the time between a stop and a resumption."""
        return self._earlier_seconds + self._clock.elapsed


def plain_list(column: np.ndarray) -> list[float]:
    """A number for each agent, for a record."""
    return [round(float(value), 6) for value in column]
