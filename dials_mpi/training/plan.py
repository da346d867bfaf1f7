"""When a run collects, learns, evaluates: its segments and units. Imports no torch, so that rank 0 can ask early.

Time is counted in training steps per agent.
"""

import functools
import math
from dataclasses import dataclass

from dials_mpi.config import Configuration
from dials_mpi.errors import UserError

_MOST = 1_000_000
"""Intervals of a run, and batches of episodes at a time: they are listed, and each takes some milliseconds at least."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of training, of whole units, between two points at which the joint policy is needed."""

    start: int
    """Training steps per agent done before it."""
    stop: int
    """And at its end."""
    round: int | None
    """Number of the round of collecting that precedes it (`Method.rounds`); None if there is none."""
    evaluates: bool
    """Whether the policies are evaluated at its end, on episodes played for that."""
    collection_evaluates: bool
    """Whether the episodes collected in its round are an evaluation of the policies at its beginning."""


def unit_steps(configuration: Configuration, horizon: int) -> int:
    """Training steps per agent of the shortest stretch that is made of whole updates and of whole episodes.

    Every unit starts with new episodes and with random streams of its own, named by its number. So nothing but what is
    learned goes from one unit to the next, and a run can stop and go on between any two without a trace.
    """
    length, copies = configuration.method.experience(configuration, horizon)
    return math.lcm(length, horizon) * copies


def update_steps(configuration: Configuration, horizon: int) -> int:
    """Training steps per agent that an update learns from."""
    return math.prod(configuration.method.experience(configuration, horizon))


def _rounded(configuration: Configuration, horizon: int, steps: int) -> int:
    """At least so many steps per agent, in whole units."""
    unit = unit_steps(configuration, horizon)
    return unit * -(-steps // unit)


def rounding(configuration: Configuration, horizon: int) -> str:
    """A line that says which numbers of steps a run rounds up to whole units, and why; empty if it rounds none.

    An interval that is as long as the run or longer divides nothing and is not mentioned.
    """
    c = configuration
    asked = {"steps": c.steps, "evaluation.interval": c.evaluation.interval}
    if c.method.rounds:
        asked[c.method.rounds] = c.setting(c.method.rounds)
    total = _rounded(c, horizon, c.steps)
    rounded = []
    for key, steps in asked.items():
        becomes = _rounded(c, horizon, steps)
        if becomes != steps and (key == "steps" or becomes < total):
            rounded.append(f"{key} {steps:,} → {becomes:,}")
    if not rounded:
        return ""
    length, copies = c.method.experience(c, horizon)
    return (
        f"rounded up: {', '.join(rounded)}, to multiples of {unit_steps(c, horizon):,} steps per agent: whole rollouts "
        f"of {length} steps in {copies} copies, and whole episodes of {horizon} steps"
    )


def plan(configuration: Configuration, horizon: int) -> list[Segment]:
    """All segments of a run; every rank comes to the same plan.

    Intervals are rounded up to whole units (see `unit_steps`).

    Args:
        configuration: of the run.
        horizon: steps per episode.
    """
    total, evaluations, rounds = _intervals(configuration, horizon)
    starts = sorted({*range(0, total, evaluations), *range(0, total, rounds)})
    collects = {start: configuration.method.rounds is not None and start % rounds == 0 for start in starts}
    return [
        Segment(
            start=start,
            stop=stop,
            round=start // rounds if collects[start] else None,
            evaluates=stop == total or (stop % evaluations == 0 and not collects[stop]),
            collection_evaluates=collects[start] and start % evaluations == 0,
        )
        for start, stop in zip(starts, [*starts[1:], total], strict=True)
    ]


def _intervals(configuration: Configuration, horizon: int) -> tuple[int, int, int]:
    """Steps of the whole run, from evaluation to evaluation, and from round to round."""
    c, rounded = configuration, functools.partial(_rounded, configuration, horizon)
    total = rounded(c.steps)
    rounds = rounded(c.setting(c.method.rounds)) if c.method.rounds else total
    return total, rounded(c.evaluation.interval), rounds


def rounds_before(segments: list[Segment], step: int) -> int:
    """Number of rounds that precede the first so many steps."""
    return len([s for s in segments if s.round is not None and s.start < step])


def check_counts(configuration: Configuration, horizon: int) -> None:
    """Refuses what would take for ever even to be listed.

    Raises:
        UserError: more evaluations, rounds or batches of episodes than anybody can want.
    """
    c = configuration
    total, *intervals = _intervals(c, horizon)
    for name, interval in zip(("evaluation.interval", c.method.rounds), intervals, strict=True):
        if total > _MOST * interval:
            raise UserError(
                f"steps: {c.steps:,} steps are {-(-total // interval):,} times {name}, and at most {_MOST:,} are "
                f"possible; take fewer steps or a longer {name}"
            )
    played = {
        "evaluation.episodes": (c.evaluation.episodes, c.evaluation.copies),
        "evaluation.handcoded_episodes": (c.evaluation.handcoded_episodes, c.evaluation.copies),
    }
    if c.method.rounds:
        played["dataset.steps"] = -(-c.dataset.steps // horizon), c.dataset.copies
    for name, (episodes, copies) in played.items():
        if episodes > _MOST * copies:
            raise UserError(
                f"{name}: {episodes:,} episodes, {copies:,} side by side, are {-(-episodes // copies):,} batches, and "
                f"at most {_MOST:,} are possible; take fewer {name} or more {name.partition('.')[0]}.copies"
            )


def evaluation_at(configuration: Configuration, horizon: int, step: int) -> tuple[int, int]:
    """Episodes of the evaluation after that many steps, and how many of them make a batch."""
    if any(s.collection_evaluates and s.start == step for s in plan(configuration, horizon)):
        return -(-configuration.dataset.steps // horizon), configuration.dataset.copies
    return configuration.evaluation.episodes, configuration.evaluation.copies


def most_batches(configuration: Configuration, horizon: int) -> int:
    """Batches of episodes that the ranks can ever share among them at a time.

    A method that learns on the GS shares none: the joint policies are on rank 0 after every update, and nowhere else.
    """
    c = configuration
    if c.method.learns_on_gs:
        return 1
    evaluation = len(batch_sizes(c.evaluation.episodes, c.evaluation.copies))
    collection = len(batch_sizes(-(-c.dataset.steps // horizon), c.dataset.copies)) if c.method.rounds else 1
    return max(evaluation, collection)


def batch_sizes(episodes: int, copies: int) -> list[int]:
    """Episodes in each batch, of at most `copies` that are played side by side."""
    return [min(copies, episodes - first) for first in range(0, episodes, copies)]
