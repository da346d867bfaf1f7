"""Event files for TensorBoard: the figures of metrics.jsonl once more, for who wants to look at them there.

| tag                                           | what it is                                                    |
|-----------------------------------------------|---------------------------------------------------------------|
| `evaluate/mean_return`                        | mean over agents and episodes, and its standard error,        |
| `evaluate/standard_error`                     | over episodes                                                 |
| `evaluate/min_agent`, `evaluate/max_agent`    | lowest and highest mean return of an agent                    |
| `evaluate/ended_early`                        | share of the episodes in which some agent's was over early    |
| `evaluate/share_above_reference`              | of the agents, above the best controller at their own places  |
| `reference/<controller>/mean_return`          | of a hand-coded controller; `standard_error` and so on alike  |
| `aip/cross_entropy_before`, `…_after`         | nats, held out, of the AIPs before and after a training       |
| `learn/<statistic>`                           | the method's statistics, means over agents and a segment       |

Steps are training steps per agent.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.extras import extra

_NO_FIGURES = ("step", "seconds", "round", "episodes")


def check_installed() -> None:
    """Raises MissingExtraError if the package is missing or cannot be loaded."""
    with extra("tensorboard", "log.tensorboard", ", or leave it false"):
        import torch.utils.tensorboard  # noqa: F401


class TensorBoard:
    """Writes an event file, one for each start of a run, with all that metrics.jsonl holds.

    A resumed run, whose metrics are cut back to its checkpoint, writes what is left of them again, behind an event that
    makes readers forget all earlier files. So nothing is seen twice, and a run that is told to log only when it is
    resumed has its past in there as well. The earlier files stay: readers that follow them would be lost without.

    Args:
        folder: is created.
        seconds: into the run now.
        past: records that the run has written so far, as `reading.open_run` gives them.
    """

    def __init__(self, folder: Path, seconds: float = 0.0, past: Iterable[dict[str, Any]] = ()):
        from torch.utils.tensorboard import SummaryWriter

        self._started = time.time() - seconds
        self._writer = SummaryWriter(folder, purge_step=0, flush_secs=10)
        for record in past:
            self.write(**record)

    def write(self, step: int, phase: str, seconds: float, **values: Any) -> None:
        """Adds the figures of one record of metrics.jsonl; what is no number, and what is per agent, is left out."""
        prefix = f"{phase}/{values['controller']}" if "controller" in values else phase
        for key, value in values.items():
            if key not in _NO_FIGURES and isinstance(value, int | float | np.number):
                self._writer.add_scalar(f"{prefix}/{key}", float(value), step, self._started + seconds)

    def close(self) -> None:
        self._writer.close()
