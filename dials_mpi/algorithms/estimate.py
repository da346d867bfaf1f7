"""What a run will take, from a few seconds of its real work on this machine. For `--dry-run`."""

from dials_mpi.algorithms.measuring import measure
from dials_mpi.algorithms.scaling import Cluster, Costs, Prediction, predict
from dials_mpi.config import Configuration
from dials_mpi.parallel.layout import Layout
from dials_mpi.runs.progress import clock_time
from dials_mpi.simulators.interface import Domain

_COUNTED_BY = {"act": "updates", "learn": "updates", "evaluate": "evaluations", "gather": "gathers", "start": None}
_WORDS = {
    "act": "acting on the global simulator",
    "collect": "collecting datasets",
    "scatter": "sending datasets",
    "aip_training": "AIP training",
    "learn": "updates of the largest block",
    "gather": "gathering policies",
    "evaluate": "evaluation, beyond what learning hides",
}


def estimate(configuration: Configuration, domain: Domain, layout: Layout, cores: int) -> str:
    """Layout, memory and time of a run, as text: good to perhaps a third.

    Args:
        cores: that the ranks have together; taken for one machine's.
    """
    costs = measure(configuration, domain, [configuration.agents], [max(layout.counts())])
    prediction = predict(configuration, layout, costs, Cluster(cores))
    turns = layout.n_ranks / cores
    lines = [
        str(layout) + (f", on {cores} cores: {turns:.1f} ranks take turns on each" if turns > 1 else ""),
        _memory(prediction, costs),
        f"time: about {clock_time(prediction.total)} for {configuration.steps:,} steps per agent",
        *phase_lines(prediction),
        f"{prediction.agent_steps_per_second:,.0f} agent-steps per second; "
        f"{prediction.efficiency:.0%} of the time of all cores is learning",
        f"what limits: {prediction.limit}; what would help: {prediction.remedy}",
    ]
    return "\n".join(lines)


def phase_lines(prediction: Prediction) -> list[str]:
    """A line for every phase that takes any time."""
    lines = []
    for phase, seconds in prediction.seconds.items():
        if not seconds:
            continue
        counted = _COUNTED_BY.get(phase, "rounds")
        count = prediction.counts[counted] if counted else 1
        each = seconds / max(1, count)
        words = _WORDS.get(phase, "loading libraries, making simulators")
        lines.append(f"  {count:6} × {each:9.4f} s = {seconds:9.1f} s {seconds / prediction.total:6.1%}  {words}")
    return lines


def _memory(prediction: Prediction, costs: Costs) -> str:
    memory = prediction.memory
    return (
        f"memory: {memory['rank_0']:.0f} MiB for rank 0, {memory['owner']:.0f} for the owner of the largest block, "
        f"{costs.memory:.0f} of each libraries; {memory['machine']:.0f} together"
    )
