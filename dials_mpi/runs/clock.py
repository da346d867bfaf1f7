"""Wall time by phase: the paper's runtime breakdown (its appendix G), kept on every rank from the first day."""

import resource
import sys
import time

import numpy as np

PHASES = (
    "start",
    "collect",
    "scatter",
    "aip_training",
    "simulate",
    "act",
    "ppo_update",
    "gather",
    "evaluate",
    "write",
    "wait",
)
"""`simulate` is the local simulator and its AIP (in mode gs: the global simulator); `write` is files and checks."""

LEARNING = ("simulate", "act", "ppo_update")
"""The phases of lines 7 to 12 of Algorithm 1."""

STAGES = ("start", "collect", "aip_training", "learn", "evaluate", "end")
"""What all ranks are about together: a wait is for the slowest of them at this."""

_LONG_WAIT = 1.0
"""Seconds in a run; what a rank that waited less used of the CPU meanwhile is not worth a percentage."""


class Clock:
    """Books wall time to phases: `with clock("act"): …`. A phase inside another one is not counted twice."""

    def __init__(self):
        self.stage = STAGES[0]
        """One of `STAGES`, for which waiting is booked until it changes."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._waits = dict.fromkeys(STAGES, 0.0)
        self._stack: list[str] = []
        self._mark = self._begin = time.perf_counter()
        self._cpu_mark = 0.0
        self._next = ""
        self._failed_in: str | None = None
        self.waiting_cpu = 0.0
        """CPU seconds that this process used while it was waiting."""

    def __call__(self, phase: str) -> "Clock":
        self._next = phase
        return self

    def __enter__(self) -> None:
        self._book()
        self._stack.append(self._next)
        self._begin_to_book()

    def __exit__(self, kind, error, trace) -> None:
        self._book()
        phase = self._stack.pop()
        if kind is not None and self._failed_in is None:
            self._failed_in = phase
        self._begin_to_book()

    def _book(self) -> None:
        """The time since `_begin_to_book`, to the phase that it was spent in."""
        if not self._stack:
            return
        seconds = time.perf_counter() - self._mark
        self._seconds[self._stack[-1]] += seconds
        if self._stack[-1] == "wait":
            self._waits[self.stage] += seconds
            self.waiting_cpu += time.process_time() - self._cpu_mark

    def _begin_to_book(self) -> None:
        self._mark = time.perf_counter()
        if self._stack and self._stack[-1] == "wait":
            self._cpu_mark = time.process_time()

    @property
    def phase(self) -> str:
        """The phase that an exception came out of, else the current one."""
        return self._failed_in or (self._stack[-1] if self._stack else "between phases")

    @property
    def elapsed(self) -> float:
        """Seconds since this clock was made."""
        return time.perf_counter() - self._begin

    def report(self) -> np.ndarray:
        """float64: seconds of `PHASES`, of waiting in `STAGES`, and all; CPU seconds waiting; peak memory in MiB."""
        seconds = [*self._seconds.values(), *self._waits.values()]
        return np.array([*seconds, self.elapsed, self.waiting_cpu, peak_memory()])


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB (code shared with other processes included)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024 * 1024)


def summarise(reports: np.ndarray, agent_steps: int, cores: int) -> dict:
    """What the closing summary says, from `Clock.report` of every rank, [n_ranks, K].

    Args:
        agent_steps: training steps of all agents together.
        cores: that the ranks together can keep busy: no more than they have threads.
    """
    seconds, waits, rest = np.split(reports, [len(PHASES), len(PHASES) + len(STAGES)], axis=1)
    elapsed, waiting_cpu, memory = rest.T
    waited = seconds[:, PHASES.index("wait")]
    patient = waited > _LONG_WAIT
    wall = float(elapsed.max())
    return {
        "wall_seconds": wall,
        "core_hours": wall * cores / 3600,
        "agent_steps": agent_steps,
        "agent_steps_per_second": agent_steps / wall,
        "agent_steps_per_second_and_core": agent_steps / wall / cores,
        "phases": _mean_and_max(PHASES, seconds),
        "waiting": _mean_and_max(STAGES, waits),
        "waiting_cpu_share": float((waiting_cpu[patient] / waited[patient]).max()) if patient.any() else None,
        "memory_mib_per_rank": [round(float(m), 1) for m in memory],
    }


def _mean_and_max(names: tuple[str, ...], seconds: np.ndarray) -> dict[str, dict[str, float]]:
    """Over ranks; seconds [n_ranks, K]."""
    return {
        name: {"mean_seconds": float(column.mean()), "max_seconds": float(column.max())}
        for name, column in zip(names, seconds.T, strict=True)
    }


def format_summary(summary: dict) -> str:
    """The closing summary as a table for people."""
    wall = summary["wall_seconds"]
    lines = [f"{'phase':14}{'mean s':>10}{'max s':>10}{'share':>8}"]
    waiting = {f"- {stage}": row for stage, row in summary["waiting"].items()}
    for phase, row in {**summary["phases"], **waiting}.items():
        if row["max_seconds"] > 0:
            share = row["mean_seconds"] / wall
            lines.append(f"{phase:14}{row['mean_seconds']:10.1f}{row['max_seconds']:10.1f}{share:8.1%}")
    memory = summary["memory_mib_per_rank"]
    lines.append(f"{'all':14}{wall:10.1f}{'':10}{'':8}  {summary['core_hours']:.3f} core-hours")
    lines.append(
        f"{summary['agent_steps']:,} agent-steps: {summary['agent_steps_per_second']:,.0f} per second, "
        f"{summary['agent_steps_per_second_and_core']:,.0f} per second and core"
    )
    lines.append(f"peak memory per rank: {min(memory):.0f} to {max(memory):.0f} MiB")
    if summary["waiting_cpu_share"] is not None:
        lines.append(f"CPU used by the least patient rank while waiting: {summary['waiting_cpu_share']:.1%}")
    return "\n".join(lines)
