"""Means over all agents: the truth to rounding, and the same bits on every layout."""

import numpy as np
import pytest
from mpi4py import MPI

from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.means import ExactMeans
from dials_mpi.runs.clock import Clock

WORLD = MPI.COMM_WORLD


def gradients(n_agents, n=1000):
    """Of very different sizes, as gradients are."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n_agents, n)) * 10.0 ** rng.uniform(-7, 2, size=(1, n))).astype(np.float32)


def means(comm, layout, rows):
    made = ExactMeans(comm, layout, Clock())
    mine = layout.agents(comm.rank)
    found = made.over_agents(rows[mine.start : mine.stop]) if mine else None
    made.close()
    made.close()
    return found


def test_they_are_the_means():
    rows = gradients(7)
    found = means(MPI.COMM_SELF, Layout(7, 1), rows)
    assert found.dtype == np.float32
    true = rows.mean(axis=0, dtype=np.float64)
    assert np.abs(found - true).max() <= 2.0**-33 + np.abs(true).max() * 2.0**-24
    assert np.array_equal(means(MPI.COMM_SELF, Layout(7, 1), rows[::-1].copy()), found), "in any order"


def test_what_is_large_is_cut_off_and_what_is_not_finite_is_named():
    rows = gradients(3)
    rows[1, 4] = 1e20
    rows[0, 4] = rows[2, 4] = 0
    found = means(MPI.COMM_SELF, Layout(3, 1), rows)
    assert found[4] == np.float32(2.0**30 / 3 / 3)
    rows[1, 5] = np.nan
    with pytest.raises(FloatingPointError, match="learning of agent 1: values are not finite"):
        means(MPI.COMM_SELF, Layout(3, 1), rows)


@pytest.mark.mpi
@pytest.mark.parametrize("works", [False, True])
def test_they_do_not_depend_on_who_owns_whom(works):
    """One rank alone, and all of them; a rank 0 that owns nobody need not come."""
    rows = gradients(9)
    alone = means(MPI.COMM_SELF, Layout(9, 1), rows)
    if WORLD.size == 1 and works:
        return
    together = means(WORLD, Layout(9, WORLD.size, works), rows)
    if WORLD.rank or works or WORLD.size == 1:
        assert np.array_equal(together, alone)
    else:
        assert together is None
