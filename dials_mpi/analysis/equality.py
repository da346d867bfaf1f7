"""Whether two runs came to the same: what a stopped and resumed run promises. Needs neither MPI nor torch."""

from pathlib import Path

import h5py
import numpy as np

from dials_mpi.runs.checkpoint import newest_whole, read_agents


def differences(one: Path, other: Path) -> list[str]:
    """In what the results of two finished runs differ, to the last bit: a line each; empty if they are equal.

    Compared are metrics (not their times), policies, the newest checkpoints (policies, optimisers, predictors and
    counters; not who wrote what) and datasets with all that they say of themselves.

    Args:
        one, other: run directories.
    """
    found = []
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    lines = [len((run / "timing.jsonl").read_bytes().splitlines()) for run in (one, other)]
    if lines[0] != lines[1]:
        found.append(f"timing.jsonl: {lines[0]} and {lines[1]} records")
    for name in ("policies.npz", "policies_best.npz"):
        found += _different_arrays(one / name, other / name)
    ends = [newest_whole(run / "checkpoints") for run in (one, other)]
    if None in (ends[0][0], ends[1][0]):
        return [*found, "checkpoints: one of the runs has none that is whole"]
    for key in ("step", "best_step", "best_return"):
        if ends[0][1][key] != ends[1][1][key]:
            found.append(f"newest checkpoint: {key} {ends[0][1][key]} and {ends[1][1][key]}")
    agents = [sorted(agent for facts in end[1]["files"].values() for agent in facts["agents"]) for end in ends]
    if agents[0] != agents[1]:
        found.append(f"newest checkpoint: agents {agents[0]} and {agents[1]}")
    else:
        mine, yours = (read_agents(checkpoint, manifest, agents[0]) for checkpoint, manifest, _ in ends)
        if list(mine) != list(yours):
            found.append(f"newest checkpoint: arrays {list(mine)} and {list(yours)}")
        else:
            found += [f"newest checkpoint: {name}" for name in mine if not np.array_equal(mine[name], yours[name])]
    names = [sorted(file.name for file in (run / "influence").glob("*")) for run in (one, other)]
    if names[0] != names[1]:
        return [*found, f"influence: files {names[0]} and {names[1]}"]
    return found + [
        line for name in names[0] for line in different_datasets(*(r / "influence" / name for r in (one, other)))
    ]


def different_datasets(one: Path, other: Path) -> list[str]:
    """In what the influence datasets of two files differ, their attributes included."""
    with h5py.File(one) as mine, h5py.File(other) as yours:
        if list(mine) != list(yours):
            return [f"{one.name}: rounds {list(mine)} and {list(yours)}"]
        found = [] if dict(mine.attrs) == dict(yours.attrs) else [f"{one.name}: attributes"]
        for round_ in mine:
            if dict(mine[round_].attrs) != dict(yours[round_].attrs):
                found.append(f"{one.name}: attributes of {round_}")
            if list(mine[round_]) != list(yours[round_]):
                found.append(f"{one.name}: fields of {round_}")
                continue
            for field in mine[round_]:
                stored = mine[round_][field], yours[round_][field]
                if dict(stored[0].attrs) != dict(stored[1].attrs) or not np.array_equal(*stored):
                    found.append(f"{one.name}: {round_}/{field}")
    return found


def _different_arrays(one: Path, other: Path) -> list[str]:
    with np.load(one, allow_pickle=False) as mine, np.load(other, allow_pickle=False) as yours:
        if mine.files != yours.files:
            return [f"{one.name}: arrays {mine.files} and {yours.files}"]
        return [f"{one.name}: {name}" for name in mine.files if not np.array_equal(mine[name], yours[name])]
