"""The trained policies as a file: plain arrays, no pickle."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.errors import UserError
from dials_mpi.runs.checkpoint import DamagedError, all_checkpoints, read_agents, read_manifest, step_of
from dials_mpi.runs.files import replace_durably

_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy raises for files that are no .npz archives of arrays, or once were."""


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


def policies_of_run(run: Path, best: bool = False, checkpoint: int | None = None) -> tuple[Path, int, np.ndarray]:
    """The policies that a run directory holds: of the last evaluation, unless it is said otherwise.

    Args:
        run: the run directory; only read.
        best: of the best evaluation.
        checkpoint: training step of the checkpoint to take them from.

    Returns:
        Where they were found, their training step, and the parameters [N, P]; what is in the file, so P is whatever the
        file says.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    if checkpoint is not None:
        return _policies_of_checkpoint(run / "checkpoints", checkpoint)
    file = run / ("policies_best.npz" if best else "policies.npz")
    try:
        return file, *load_policies(file)
    except _UNREADABLE as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if file.is_file() and not zipfile.is_zipfile(file):  # numpy takes any such file for a pickle
            what = "it is no .npz file of policies"
        remedy = "restore it" if file.exists() else "a run writes them at its evaluations"
        raise UserError(f"{file}: no policies to be read ({what}); {remedy}") from error


def _policies_of_checkpoint(folder: Path, step: int) -> tuple[Path, int, np.ndarray]:
    checkpoints = {step_of(path): path for path in all_checkpoints(folder)}
    if step not in checkpoints:
        there = ", ".join(map(str, sorted(checkpoints))) or "none"
        raise UserError(f"{folder}: there is no checkpoint of step {step}; there are: {there}")
    try:
        manifest = read_manifest(checkpoints[step])
    except DamagedError as error:
        raise UserError(str(error)) from error
    agents = sorted(agent for facts in manifest["files"].values() for agent in facts["agents"])
    return checkpoints[step], step, read_agents(checkpoints[step], manifest, agents)["policy"]
