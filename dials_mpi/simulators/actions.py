"""Actions that somebody has to choose without a policy, among those that are available."""

import numpy as np

from dials_mpi.simulators.interface import Domain, Simulator


def available_actions(domain: Domain, simulator: Simulator) -> np.ndarray | None:
    """[A, B, n_actions] bool as of now; None in a domain where all actions are always available."""
    return simulator.available_actions() if domain.masks_actions else None


def first_actions(domain: Domain, shape: tuple[int, int], available: np.ndarray | None) -> np.ndarray:
    """The first action that each agent has, [A, B] int64; of continuous ones the middle, [A, B, C] float32.

    Args:
        shape: A and B.
        available: as of `available_actions`.
    """
    if domain.action_size:
        return np.full((*shape, domain.action_size), sum(domain.action_range) / 2, np.float32)
    return np.zeros(shape, np.int64) if available is None else available.argmax(axis=-1)


def random_actions(
    domain: Domain, generator: np.random.Generator, shape: tuple[int, ...], available: np.ndarray | None
) -> np.ndarray:
    """[*shape] int64, or [*shape, C] float32 of continuous actions; each as likely as any other.

    Args:
        available: [*shape, n_actions] bool; None: all are.
    """
    if domain.action_size:
        return generator.uniform(*domain.action_range, (*shape, domain.action_size)).astype(np.float32)
    if available is None:
        return generator.integers(domain.n_actions, size=shape)
    return np.where(available, generator.random(available.shape), -1.0).argmax(axis=-1)
