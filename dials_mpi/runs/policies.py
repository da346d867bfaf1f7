"""The trained policies as a file: plain arrays, no pickle."""

from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.runs.files import replace_durably


def save_policies(path: Path, network: Any, step: int) -> None:
    """Writes all agents' parameters to an .npz file, whole before and after.

    The file holds `step`, `parameters` [N, P] float32, and for each parameter its name in `names` and its shape in
    `shapes` [K, 2], in the order of a row.

    Args:
        network: a `StackedNetwork` of all N agents.
    """
    temporary = path.with_suffix(".npz.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            step=np.int64(step),
            parameters=network.parameters.numpy(),
            names=np.array(list(network.shapes)),
            shapes=np.array(list(network.shapes.values()), np.int64),
        )
    replace_durably(temporary, path)


def load_policies(path: Path) -> tuple[int, np.ndarray]:
    """Training step and parameters [N, P] of a file that `save_policies` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return int(file["step"]), file["parameters"]
