"""When a run collects, trains, evaluates: its segments and units. Imports no torch, so that rank 0 can ask early."""

import functools
import math
from dataclasses import dataclass

from dials_mpi.config import Configuration
from dials_mpi.errors import UserError

_MOST = 1_000_000
"""Intervals of a run, and batches of episodes at a time: they are listed, and each takes some milliseconds at least."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of training, of whole units, between two points at which rank 0 needs the policies."""

    updates: range
    """Numbers of its PPO updates, counted from the start of the run."""
    round: int | None
    """Number of the AIP training that precedes it (Algorithm 1, lines 3-6); None if there is none."""
    evaluates: bool
    """Whether the policies are evaluated at its end, on episodes played for that."""
    collection_evaluates: bool
    """Whether the episodes collected for the AIP training are an evaluation of the policies at its beginning."""


def updates_per_unit(configuration: Configuration, horizon: int) -> int:
    """PPO updates of the shortest stretch that is made of whole rollouts and of whole episodes.

    Every unit starts with new episodes and with random streams of its own, named by its number. So nothing but what is
    learned goes from one unit to the next, and a run can stop and go on between any two without a trace.
    """
    length = configuration.ppo.rollout_length
    return math.lcm(length, horizon) // length


def _updates(configuration: Configuration, horizon: int, steps: int) -> int:
    """PPO updates that make up at least `steps` steps per agent, in whole units."""
    unit = updates_per_unit(configuration, horizon)
    return unit * -(-steps // configuration.steps_after(unit))


def rounding(configuration: Configuration, horizon: int) -> str:
    """A line that says which numbers of steps a run rounds up to whole units, and why; empty if it rounds none.

    An interval that is as long as the run or longer divides nothing and is not mentioned.
    """
    c = configuration
    asked = {"steps": c.steps, "evaluation.interval": c.evaluation.interval}
    if c.mode == "dials":
        asked["predictor.interval"] = c.predictor.interval
    total = c.steps_after(_updates(c, horizon, c.steps))
    rounded = []
    for key, steps in asked.items():
        becomes = c.steps_after(_updates(c, horizon, steps))
        if becomes != steps and (key == "steps" or becomes < total):
            rounded.append(f"{key} {steps:,} → {becomes:,}")
    if not rounded:
        return ""
    unit = c.steps_after(updates_per_unit(c, horizon))
    return (
        f"rounded up: {', '.join(rounded)}, to multiples of {unit:,} steps per agent: whole rollouts of "
        f"{c.ppo.rollout_length} steps in {c.ppo.copies} copies, and whole episodes of {horizon} steps"
    )


def plan(configuration: Configuration, horizon: int) -> list[Segment]:
    """All segments of a run; every rank comes to the same plan.

    Intervals are rounded up to whole units (see `updates_per_unit`).

    Args:
        configuration: of the run.
        horizon: steps per episode.
    """
    total, evaluations, retraining = _intervals(configuration, horizon)
    starts = sorted({*range(0, total, evaluations), *range(0, total, retraining)})
    collects = {start: configuration.mode == "dials" and start % retraining == 0 for start in starts}
    return [
        Segment(
            updates=range(start, end),
            round=start // retraining if collects[start] else None,
            evaluates=end == total or (end % evaluations == 0 and not collects[end]),
            collection_evaluates=collects[start] and start % evaluations == 0,
        )
        for start, end in zip(starts, [*starts[1:], total], strict=True)
    ]


def _intervals(configuration: Configuration, horizon: int) -> tuple[int, int, int]:
    """Updates of the whole run, from evaluation to evaluation, and from AIP training to AIP training."""
    updates = functools.partial(_updates, configuration, horizon)
    total = updates(configuration.steps)
    retraining = updates(configuration.predictor.interval) if configuration.mode == "dials" else total
    return total, updates(configuration.evaluation.interval), retraining


def check_counts(configuration: Configuration, horizon: int) -> None:
    """Refuses what would take for ever even to be listed.

    Raises:
        UserError: more evaluations, AIP trainings or batches of episodes than anybody can want.
    """
    c = configuration
    total, *intervals = _intervals(c, horizon)
    for name, interval in zip(("evaluation.interval", "predictor.interval"), intervals, strict=True):
        if total > _MOST * interval:
            raise UserError(
                f"steps: {c.steps:,} steps are {-(-total // interval):,} times {name}, and at most {_MOST:,} are "
                f"possible; take fewer steps or a longer {name}"
            )
    played = {
        "evaluation.episodes": (c.evaluation.episodes, c.evaluation.copies),
        "evaluation.handcoded_episodes": (c.evaluation.handcoded_episodes, c.evaluation.copies),
    }
    if c.mode == "dials":
        played["dataset.steps"] = -(-c.dataset.steps // horizon), c.dataset.copies
    for name, (episodes, copies) in played.items():
        if episodes > _MOST * copies:
            raise UserError(
                f"{name}: {episodes:,} episodes, {copies:,} side by side, are {-(-episodes // copies):,} batches, and "
                f"at most {_MOST:,} are possible; take fewer {name} or more {name.partition('.')[0]}.copies"
            )


def evaluation_at(configuration: Configuration, horizon: int, updates: int) -> tuple[int, int]:
    """Episodes of the evaluation after that many updates, and how many of them make a batch."""
    if any(s.collection_evaluates and s.updates.start == updates for s in plan(configuration, horizon)):
        return -(-configuration.dataset.steps // horizon), configuration.dataset.copies
    return configuration.evaluation.episodes, configuration.evaluation.copies


def most_batches(configuration: Configuration, horizon: int) -> int:
    """Batches of episodes that the ranks can ever share among them at a time.

    In mode gs none are shared: the joint policies are on rank 0 after every update, and nowhere else.
    """
    c = configuration
    if c.mode == "gs":
        return 1
    evaluation = len(batch_sizes(c.evaluation.episodes, c.evaluation.copies))
    collection = len(batch_sizes(-(-c.dataset.steps // horizon), c.dataset.copies)) if c.mode == "dials" else 1
    return max(evaluation, collection)


def batch_sizes(episodes: int, copies: int) -> list[int]:
    """Episodes in each batch, of at most `copies` that are played side by side."""
    return [min(copies, episodes - first) for first in range(0, episodes, copies)]
