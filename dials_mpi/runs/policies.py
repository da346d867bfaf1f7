"""What has been learned, as a file: plain arrays, no pickle."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dials_mpi.errors import UserError
from dials_mpi.runs.checkpoint import DamagedError, all_checkpoints, read_agents, read_manifest, step_of
from dials_mpi.runs.files import replace_durably

_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy raises for files that are no .npz archives of arrays, or once were."""


_POLICY = "policy"


def save_policies(
    path: Path, rows: Mapping[str, np.ndarray], shapes: Mapping[str, Mapping[str, tuple[int, int]]], step: int
) -> None:
    """Writes what all agents act by to an .npz file, whole before and after.

    The file holds `step`, and of the stack called `policy` `parameters` [N, P] float32, and for each parameter its name
    in `names` and its shape in `shapes` [K, 2], in the order of a row; of other stacks the same behind their name and a
    slash.

    Args:
        rows: the stacks by name.
        shapes: by name, those of the parameters in a row.
    """
    arrays = {}
    for name, stack in rows.items():
        arrays |= {
            f"{_prefix(name)}parameters": stack,
            f"{_prefix(name)}names": np.array(list(shapes[name])),
            f"{_prefix(name)}shapes": np.array(list(shapes[name].values()), np.int64),
        }
    temporary = path.with_suffix(".npz.tmp")
    with temporary.open("wb") as file:
        np.savez(file, step=np.int64(step), **arrays)
    replace_durably(temporary, path)


def load_policies(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Training step and rows [N, P] by name of a file that `save_policies` wrote."""
    with np.load(path, allow_pickle=False) as file:
        names = [key.removesuffix("parameters").rstrip("/") or _POLICY for key in file if key.endswith("parameters")]
        return int(file["step"]), {name: file[f"{_prefix(name)}parameters"] for name in names}


def _prefix(name: str) -> str:
    return "" if name == _POLICY else f"{name}/"


def policies_of_run(
    run: Path, best: bool = False, checkpoint: int | None = None
) -> tuple[Path, int, dict[str, np.ndarray]]:
    """The policies that a run directory holds: of the last evaluation, unless it is said otherwise.

    Args:
        run: the run directory; only read.
        best: of the best evaluation.
        checkpoint: training step of the checkpoint to take them from.

    Returns:
        Where they were found, their training step, and rows [N, …] by name: what is there, so their lengths are
        whatever the file says, and of a checkpoint it is all that it holds.

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


def _policies_of_checkpoint(folder: Path, step: int) -> tuple[Path, int, dict[str, np.ndarray]]:
    checkpoints = {step_of(path): path for path in all_checkpoints(folder)}
    if step not in checkpoints:
        there = ", ".join(map(str, sorted(checkpoints))) or "none"
        raise UserError(f"{folder}: there is no checkpoint of step {step}; there are: {there}")
    try:
        manifest = read_manifest(checkpoints[step])
    except DamagedError as error:
        raise UserError(str(error)) from error
    agents = sorted(agent for facts in manifest["files"].values() for agent in facts["agents"])
    return checkpoints[step], step, read_agents(checkpoints[step], manifest, agents)
