"""What the closing summary says of a run's time."""

import numpy as np
import pytest

from dials_mpi.runs.clock import PHASES, STAGES, format_summary, summarise


def reports(*ranks: tuple[float, float]) -> np.ndarray:
    """Of ranks that waited for so many seconds of ten, and used so many of the CPU meanwhile."""
    rows = np.zeros((len(ranks), len(PHASES) + len(STAGES) + 3))
    rows[:, -3] = 10
    for row, (waited, used) in zip(rows, ranks, strict=True):
        row[PHASES.index("wait")], row[-2] = waited, used
    return rows


def test_core_hours_and_the_speed_of_a_core_are_those_of_the_cores_that_were_used():
    """Ten seconds on three cores; 600 agent-steps."""
    summary = summarise(reports((0, 0), (5, 0)), agent_steps=600, cores=3)
    assert summary["wall_seconds"] == 10
    assert summary["core_hours"] == pytest.approx(30 / 3600)
    assert (summary["agent_steps_per_second"], summary["agent_steps_per_second_and_core"]) == (60, 20)
    assert "0.008 core-hours\n600 agent-steps: 60 per second, 20 per second and core" in format_summary(summary)


def test_the_cpu_use_of_waiting_is_that_of_the_least_patient_rank_that_waited_for_long():
    summary = summarise(reports((5, 0.05), (2, 0.03), (0.1, 0.09)), agent_steps=1, cores=1)
    assert summary["waiting_cpu_share"] == pytest.approx(0.015)
    assert "CPU used by the least patient rank while waiting: 1.5%" in format_summary(summary)


def test_where_nobody_waited_for_long_nothing_is_said_of_it():
    summary = summarise(reports((0.5, 0.05), (0, 0)), agent_steps=1, cores=1)
    assert summary["waiting_cpu_share"] is None
    assert "while waiting" not in format_summary(summary)
