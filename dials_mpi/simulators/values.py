"""Values that a simulator must not give, and where it gave them: step, agent and copy, each counted from 0."""

from collections.abc import Sequence

import numpy as np

from dials_mpi.simulators.interface import Domain


def earliest(bad: np.ndarray) -> tuple[int, ...]:
    """Index (row, t, copy, …) of the first true entry of [A, T, B, …]: in time, then among agents, then copies."""
    t, row, *rest = np.argwhere(bad.swapaxes(0, 1))[0].tolist()
    return row, t, *rest


def place(step: int, agent: int, copy: int) -> str:
    """In words; step -1 is the reset before step 0."""
    return f"{f'step {step}' if step >= 0 else 'reset'}, agent {agent}, copy {copy}"


def all_finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "biu" or bool(np.isfinite(values).all())


def check_available(
    domain: Domain,
    simulator: str,
    agents: Sequence[int],
    copies: Sequence[int],
    available: np.ndarray,
    steps: Sequence[int],
) -> None:
    """Raises FloatingPointError that names the first agent without an action.

    Args:
        simulator, agents: as of `check_finite`.
        copies: B numbers.
        available: [A, T, B, actions] bool.
        steps: after which of an episode, T of them; -1: after a reset.
    """
    lacking = ~available.any(axis=-1)
    if lacking.any():
        row, t, column = earliest(lacking)
        where = place(steps[t], agents[row], copies[column])
        raise FloatingPointError(f"domain {domain.name}: {simulator}.available_actions: none at {where}")


def check_finite(
    domain: Domain, simulator: str, agents: Sequence[int], **met_with: tuple[np.ndarray, Sequence[int]]
) -> None:
    """Raises FloatingPointError that names the first value that is NaN or infinite.

    Args:
        simulator: its kind.
        agents: A ids.
        met_with: by kind of values, [A, T, B, …] and the T steps of an episode that returned them, -1 for a reset.
    """
    found: list[tuple[int, str]] = []
    for kind, (values, steps) in met_with.items():
        finite = np.isfinite(values)
        if not finite.all():
            row, t, copy, *_ = index = earliest(~finite)
            found.append((t, f"{kind} {values[index]:g} at {place(steps[t], agents[row], copy)} is not finite"))
    if found:
        raise FloatingPointError(f"domain {domain.name}: {simulator}: {min(found, key=lambda it: it[0])[1]}")
