"""What a run that goes on starts from: it is found, compared with what is asked for, and cut back to a checkpoint."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from dials_mpi import cli
from dials_mpi.config import MAY_CHANGE, Configuration, load_yaml, resolve, stored_layer
from dials_mpi.errors import UserError
from dials_mpi.runs.checkpoint import MANIFEST, clear_after, newest_whole
from dials_mpi.runs.directory import RunDirectory, check_name, lock, read_facts
from dials_mpi.runs.metrics import cut_back
from dials_mpi.runs.stopping import STOP_FILE
from dials_mpi.simulators.interface import Domain
from dials_mpi.training.plan import plan, rounds_before

_PATIENCE = 150.0
"""Seconds that a job which comes back waits for what is left of its last start."""


class NothingToDo(Exception):  # noqa: N818 - no error
    """The run that is to be resumed has come to its end, or is to stay where it is: exit code, and why."""


def run_path(arguments: argparse.Namespace) -> Path | None:
    """The run directory that is to be resumed; None for a new run.

    Raises:
        UserError: `--resume` names no run, or `--name` is none.
    """
    if arguments.name is not None:
        check_name(arguments.name, "--name:")
    if arguments.resume is None:
        return None
    if arguments.resume == "auto":
        if not arguments.name:
            raise UserError("--resume auto: give the run a --name, by which it is found again")
        path = (arguments.runs or cli.RUNS) / arguments.name
        return path if (path / "config.yaml").exists() else None
    path = Path(arguments.resume)
    if arguments.name:
        raise UserError(f"--name: the run {path} has its name already; leave it out")
    if arguments.runs:
        raise UserError(f"--runs: {arguments.runs} is of no use: --resume {path} says where the run is; leave it out")
    if not (path / "config.yaml").is_file():
        raise UserError(f"--resume: {path} is no run directory: it has no config.yaml")
    return path


def stored_configuration(run: Path, default_agents: int, named_env: str | None) -> Configuration:
    """That a run directory holds.

    Args:
        default_agents, named_env: as of `config.resolve`.

    Raises:
        UserError: it holds none, or as of `config.resolve`.
    """
    file = run / "config.yaml"
    values = load_yaml(file)
    if "env" not in values:
        raise UserError(f"{file}: no configuration of a run: it has no env; restore it")
    return resolve([stored_layer(file, values)], default_agents, named_env)


def layers_beneath(arguments: argparse.Namespace, run: Path, stored: Configuration) -> list[tuple[str, dict[str, Any]]]:
    """The layers of configuration beneath those of the command line of a run that goes on."""
    file, mode = run / "config.yaml", arguments.mode or stored.mode
    # What follows from the steps that the run was made with does not follow from those of now.
    made = stored_layer(file, _settled(stored), mode)
    # With auto the command line stands for itself, as it did when the run was started.
    return [made] if arguments.resume == "auto" else [stored_layer(file, load_yaml(file), mode), made]


def refuse_changes(stored: Configuration, wanted: Configuration, path: Path) -> None:
    """Raises UserError with every setting that differs from the run's and must not."""
    if changes := _changes(stored, wanted):
        raise UserError(f"--resume: in {path} {changes}; a resumed run may change {', '.join(MAY_CHANGE)} only")


def newest_checkpoint(path: Path, stored: Configuration) -> tuple[str | None, dict]:
    """Path (None: go on from the beginning) and manifest of the checkpoint that a run goes on from.

    Args:
        path: the run directory.
        stored: its configuration.
    """
    checkpoint, manifest, complaints = newest_whole(path / "checkpoints")
    if checkpoint is None and (complaints or read_facts(path).get("state") in ("finished", "stopped")):
        what = f"no whole checkpoint: {complaints[0]}" if complaints else "no checkpoint any more"
        raise UserError(
            f"--resume: {path} has {what}; beginning again would lose its results: start a new run with "
            f"--config {path / 'config.yaml'}, without --resume and under another --name"
        )
    for complaint in complaints:
        print(f"dials_mpi: checkpoint passed over: {complaint}", file=sys.stderr, flush=True)
    if checkpoint:
        # Completed by this version's defaults, like the file: neither may know settings that are new.
        layers = [
            stored_layer(checkpoint / MANIFEST, values) for values in (_settled(stored), manifest["configuration"])
        ]
        made_with = resolve(layers, stored.agents, stored.env)
        if changes := _changes(made_with, stored):
            raise UserError(
                f"--resume: {path / 'config.yaml'} is not what {checkpoint} was made with ({changes}); restore it, or "
                "start a new run"
            )
    return checkpoint and str(checkpoint.resolve()), manifest


def reopen(
    arguments: argparse.Namespace,
    path: Path,
    stored: Configuration,
    configuration: Configuration,
    domain: Domain,
    facts: dict[str, Any],
) -> tuple[RunDirectory, tuple[str | None, dict]]:
    """The directory of a run that goes on, cut back to its newest whole checkpoint, and that.

    Args:
        stored, configuration: before and now.

    Raises:
        UserError: something is damaged, or another process is at work on the run; nothing has been touched.
        NothingToDo: it has come to its end, or a person has stopped it.
    """
    held = lock(path, _PATIENCE if arguments.resume == "auto" else 0)
    resumed = newest_checkpoint(path, stored)
    step, segments = resumed[1].get("step", 0), plan(configuration, domain.horizon)
    total = segments[-1].stop
    if step > total or (step == total and read_facts(path).get("state") == "finished"):
        held.close()
        raise NothingToDo(0, f"{path} has come to step {step:,} already: nothing to do")
    if arguments.resume == "auto" and (path / STOP_FILE).exists():
        held.close()
        raise NothingToDo(cli.EXIT_UNFINISHED, f"{path / STOP_FILE}: the run stays stopped; remove it to go on")
    if configuration.method.files:
        files = importlib.import_module(configuration.method.files)
        files.check_files(path, range(configuration.agents), rounds_before(segments, step))
    cut_back(path, resumed[1].get("metrics", {}))
    directory = RunDirectory.reopen(path, held, configuration.to_yaml(), step, facts)
    clear_after(path / "checkpoints", step)
    return directory, resumed


def _changes(old: Configuration, new: Configuration) -> str:
    """In words, what differs and must not in a resumed run; empty if nothing does."""
    if old.mode != new.mode:
        return f"mode is {old.mode}, not {new.mode}"
    changes = []

    def compare(old, new, key):
        if isinstance(old, dict) and isinstance(new, dict):
            for name in sorted(old.keys() | new.keys()):
                compare(old.get(name), new.get(name), [*key, name])
        elif old != new and key[0] not in MAY_CHANGE:
            changes.append(f"{'.'.join(key)} is {old}, not {new}")

    compare(old.model_dump(mode="json"), new.model_dump(mode="json"), [])
    return "; ".join(changes)


def _settled(configuration: Configuration) -> dict[str, Any]:
    """What follows from the steps that a run was made with, as a layer."""
    values = configuration.model_dump(mode="json")
    return {
        name: {key: values[name][key] for key in section.settled}
        for name, section in configuration.sections.items()
        if section.settled
    }
