"""Influence datasets D_i: in memory for a block of agents, and one HDF5 file per agent on disk.

Imports neither torch nor MPI, so it serves on any machine.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dials_mpi.errors import UserError
from dials_mpi.runs import faults
from dials_mpi.runs.files import replace_durably
from dials_mpi.simulators.interface import Influence

FOLDER = "influence"
"""Of a run directory."""
SCHEMA_VERSION = 1
_CHECKSUMMED = ("v110", "v110")  # formats whose metadata has checksums; every HDF5 since 1.10 reads them

_SCHEMA = "dials_mpi influence dataset"
_AXES = {"history": "step, local state bit", "influence_sources": "step, influence source", "actions": "step"}
_MORE_AXES = {"episode_starts": "episode", "predictor": "parameter"}


@dataclass
class InfluenceDataset:
    """Samples (l_t, u_t) of A agents: E episodes of T steps each.

    Row t of an episode holds x_t, a_t and the u_t that took x_t to x_{t+1}; the history l_t is rows up to t, without
    a_t. AIPs see the local states of it, and the actions only with `predictor.sees_actions`.
    """

    history: np.ndarray
    """[A, E, T, D] uint8, local states; the actions of the history are in `actions`."""
    influence_sources: np.ndarray
    """[A, E, T, U] uint8, classes."""
    actions: np.ndarray
    """[A, E, T] uint8; continuous ones [A, E, T, C] float32, which no AIP sees."""

    @classmethod
    def empty(
        cls, n_agents: int, episodes: int, horizon: int, influence: Influence, action_size: int = 0
    ) -> "InfluenceDataset":
        """Arrays to be filled in; `action_size` is C of continuous actions."""
        shape = (n_agents, episodes, horizon)
        return cls(
            history=np.empty((*shape, influence.local_state_size), np.uint8),
            influence_sources=np.empty((*shape, influence.sources), np.uint8),
            actions=np.empty((*shape, action_size), np.float32) if action_size else np.empty(shape, np.uint8),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def agent_file(folder: Path, agent: int) -> Path:
    """The file of an agent in the folder `FOLDER` of a run."""
    return folder / f"agent_{agent:04d}.h5"


def check_files(run: Path, agents: Iterable[int], rounds: int) -> None:
    """Reads what the datasets of a run are to keep, before anything of the run is touched.

    Args:
        run: the run directory.
        rounds: the first so many are to be kept.

    Raises:
        UserError: a file is damaged. One that is not there is mentioned, and does without its earlier rounds.
    """
    for agent in agents if rounds else ():
        file = agent_file(run / FOLDER, agent)
        if file.exists():
            check_rounds(file, rounds)
        else:
            print(f"dials_mpi: {file}: not there; goes on without its earlier rounds", file=sys.stderr, flush=True)


def cut_files(run: Path, agents: Iterable[int], rounds: int) -> None:
    """Takes out of the datasets of some agents what a run that goes on will write again: all but the first rounds.

    Args:
        run, rounds: as of `check_files`.
    """
    for agent in agents:
        drop_rounds(agent_file(run / FOLDER, agent), rounds)


def drop_rounds(path: Path, first: int) -> None:
    """Takes rounds from `first` on out of an agent's file, which is whole before and after; harmless without a file."""
    temporary = path.with_suffix(".h5.tmp")
    temporary.unlink(missing_ok=True)
    if not first:  # whatever it is
        path.unlink(missing_ok=True)
    if not path.exists():
        return
    with h5py.File(path, "r") as old:
        kept = [name for name in sorted(old) if _number(name) < first]
        if len(kept) == len(old):
            return
        with h5py.File(temporary, "w", libver=_CHECKSUMMED) as file:
            for name in kept:
                old.copy(name, file)  # of none of which anything may be open: HDF5 2.0 then corrupts its memory
            file.attrs.update(old.attrs)
    if kept:
        replace_durably(temporary, path)
    else:
        temporary.unlink()
        path.unlink()


def check_rounds(path: Path, first: int) -> None:
    """Reads every number of the rounds before `first`; the file has checksums throughout, but for text attributes.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            dict(file.attrs)
            for name in file:
                if _number(name) < first:
                    dict(file[name].attrs)
                    for field in file[name]:
                        dict(file[name][field].attrs)
                        file[name][field][()]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({error}); move it away to go on without its earlier rounds") from error


def _number(name: str) -> int:
    return int(name.removeprefix("round_"))


def write_round(
    path: Path,
    dataset: InfluenceDataset,
    row: int,
    round_: int,
    attributes: dict,
    predictor: np.ndarray | None = None,
    keep: int = 0,
) -> None:
    """Adds one round of one agent to its file, which is whole before and after whatever happens meanwhile.

    The kept rounds are copied to a temporary file, the new one is added, the file is synced and renamed over the old.

    Args:
        path: the agent's file; created if it does not exist.
        dataset: of a block of agents.
        row: the agent's place in the block.
        round_: number of the round, from 0.
        attributes: what the group says of itself beside the schema: step, seed, cross-entropies and so on.
        predictor: [P] float32, the parameters of the agent's AIP as trained on this dataset.
        keep: newest rounds to keep, this one included; 0: all.

    Raises:
        UserError: what is in the file already is damaged.
    """
    name = f"round_{round_:04d}"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".h5.tmp")
    with h5py.File(temporary, "w", libver=_CHECKSUMMED) as file:
        if path.exists():
            try:
                with h5py.File(path, "r") as old:
                    kept = sorted(group for group in old if group != name)
                    for group in kept[-(keep - 1) :] if keep > 1 else kept if keep == 0 else []:
                        old.copy(group, file)
            except (OSError, RuntimeError):
                check_rounds(path, round_)  # HDF5 does not say which of the two files it is about
                raise
        file.attrs.update(
            {key: attributes[key] for key in ("domain", "agent", "n_agents", "seed")},
            schema=_SCHEMA,
            schema_version=SCHEMA_VERSION,
        )
        faults.point("dataset/write")
        group = file.create_group(name)
        group.attrs.update(attributes, schema_version=SCHEMA_VERSION, round=round_)
        _, episodes, horizon, _ = dataset.history.shape
        arrays = {field: getattr(dataset, field)[row] for field in _AXES}
        arrays = {field: rows.reshape(episodes * horizon, *rows.shape[2:]) for field, rows in arrays.items()}
        arrays["episode_starts"] = np.arange(episodes, dtype=np.int64) * horizon
        if predictor is not None:
            arrays["predictor"] = predictor
        for field, values in arrays.items():
            stored = group.create_dataset(
                field, data=values, compression="gzip", compression_opts=1, shuffle=True, fletcher32=True
            )
            continuous = field == "actions" and values.ndim > 1
            stored.attrs["axes"] = (_AXES | _MORE_AXES)[field] + (", component" if continuous else "")
    faults.point("dataset/rename")
    replace_durably(temporary, path)


@dataclass(frozen=True)
class Round:
    """One round of one agent, read back."""

    attributes: dict[str, Any]
    """`round`, `step`, `agent`, `influence_classes`, `cross_entropy_before`, `cross_entropy_after` and so on; of an AIP
    that sees actions `n_actions`, too."""
    history: np.ndarray
    """[E, T, D] uint8, local states."""
    influence_sources: np.ndarray
    """[E, T, U] uint8."""
    actions: np.ndarray
    """[E, T] uint8, or [E, T, C] float32."""
    predictor: np.ndarray | None
    """[P] float32, parameters of the AIP trained on it; None if the file does not say."""


def read_rounds(path: Path) -> Iterator[Round]:
    """The rounds of an agent's file, oldest first, one in memory at a time.

    Raises:
        UserError: the file is damaged, or is no influence dataset.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("schema") != _SCHEMA:
                raise UserError(f"{path}: no influence dataset: its attribute `schema` does not say so")
            if file.attrs["schema_version"] > SCHEMA_VERSION:
                raise UserError(f"{path}: of a newer version of dials_mpi; read it with that one")
            for name in sorted(file):
                group = file[name]
                attributes = dict(group.attrs)
                shape = (len(group["episode_starts"]), attributes["horizon"])
                arrays = {field: group[field][()] for field in _AXES}
                yield Round(
                    attributes=attributes,
                    **{field: rows.reshape(*shape, *rows.shape[1:]) for field, rows in arrays.items()},
                    predictor=group["predictor"][()] if "predictor" in group else None,
                )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: damaged, or no influence dataset ({error})") from error
