"""Values that a simulator must not give, and where it gave them: step, agent and copy, each counted from 0."""

from collections.abc import Sequence

import numpy as np


def earliest(bad: np.ndarray) -> tuple[int, ...]:
    """Index (row, t, copy, …) of the first true entry of [A, T, B, …]: in time, then among agents, then copies."""
    t, row, *rest = np.argwhere(bad.swapaxes(0, 1))[0].tolist()
    return row, t, *rest


def place(step: int, agent: int, copy: int) -> str:
    """In words; step -1 is the reset before step 0."""
    return f"{f'step {step}' if step >= 0 else 'reset'}, agent {agent}, copy {copy}"


def check_finite(what: str, values: np.ndarray, agents: Sequence[int], steps: Sequence[int]) -> None:
    """Raises FloatingPointError that names the first value that is NaN or infinite.

    Args:
        what: domain, simulator and kind of the values.
        values: [A, T, B, …].
        agents: A ids.
        steps: T steps of the episode, by which the values were returned; -1 for a reset.
    """
    finite = np.isfinite(values)
    if not finite.all():
        row, t, copy, *_ = index = earliest(~finite)
        raise FloatingPointError(f"{what} {values[index]:g} at {place(steps[t], agents[row], copy)}")
