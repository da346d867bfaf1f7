"""What a run will take, from a few seconds of its real work on this machine. For `--dry-run`.

Bounded: measured are small systems and blocks, each in a limited time, and larger ones are extrapolated from them.
"""

from collections.abc import Callable

from dials_mpi.config import Configuration
from dials_mpi.errors import UserError
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.machines import memory_here
from dials_mpi.runs.progress import clock_time
from dials_mpi.scaling.measuring import Unmeasured, check_in_time, measure
from dials_mpi.scaling.memory import episode_memory, joint_memory, owners_memory
from dials_mpi.scaling.model import Cluster, Costs, Prediction, predict
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import make_domain

_CHECKED_AGENTS = 16
_MEASURED_AGENTS = 64
_MEASURED_BLOCK = 16
"""At most. Where there are more, a quarter of it is measured as well, and a line goes through both."""
_CHECK_SECONDS, _MEASURE_SECONDS = 12.0, 40.0
"""At most."""
_SHARE_OF_MEMORY = 0.25
"""Of this machine's, for the arrays of what is measured; a gradient step holds some of them several times over."""

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


def check(configuration: Configuration, domain: Domain, say: Callable[[str], None]) -> str:
    """Whether the domain keeps what the interface promises, in a line; looks at a small system of it if there is one.

    Args:
        say: told what is done.

    Raises:
        UserError: the first promise that is broken.
    """
    size = sizes_of_systems(configuration, _CHECKED_AGENTS)[-1]
    say(f"checking the domain with {size:,} agents")
    try:
        check_in_time(configuration.model_copy(update={"agents": size}), _CHECK_SECONDS)
    except Unmeasured as reason:
        return f"domain {domain.name}: not checked with {size:,} agents: {reason}"
    return f"domain {domain.name}: keeps what the interface promises, with {size:,} agents"


def estimate(
    configuration: Configuration,
    domain: Domain,
    layout: Layout,
    cores: int,
    memory: float,
    say: Callable[[str], None],
) -> str:
    """Layout, memory and time of a run, as text: good to perhaps a third.

    A block far larger than those measured no longer fits into a core's cache: 400 robots in one process take half as
    long again as the line through 4 and 16 of them says.

    Args:
        cores, memory: that the ranks have together, MiB; taken for one machine's.
        say: told what is measured.
    """
    turns = layout.n_ranks / cores
    lines = [str(layout) + (f", on {cores} cores: {turns:.1f} ranks take turns on each" if turns > 1 else "")]
    if not configuration.method.modelled:
        return "\n".join([*lines, f"memory and time: nothing is known of what mode {configuration.mode} costs"])
    most, most_in_block = _most(configuration, domain)
    try:
        if not most or not most_in_block:
            raise Unmeasured("one agent alone takes a large part of this machine's memory")
        agents = sizes_of_systems(configuration, min(most, _MEASURED_AGENTS))
        block = max(layout.counts())
        blocks = sizes_of_blocks(block, min(most_in_block, _MEASURED_BLOCK))
        costs = measure(configuration, domain, agents, blocks, say, _MEASURE_SECONDS)
    except Unmeasured as reason:
        lines.append(f"memory and time: not measured ({reason}); tools/scaling_model.py has no time limit")
        return "\n".join(lines)
    prediction = predict(configuration, layout, costs, Cluster(cores, memory=memory))
    if beyond := costs.extrapolated(layout):
        lines.append(f"extrapolated: {'; '.join(beyond)}")
    lines += [
        f"{_memory(prediction, costs)} of {memory:,.0f} here",
        f"time: about {clock_time(prediction.total)} for {configuration.steps:,} steps per agent",
        *phase_lines(prediction),
        f"{prediction.agent_steps_per_second:,.0f} agent-steps per second; "
        f"{prediction.efficiency:.0%} of the time of all cores is learning",
        f"what limits: {prediction.limit}; what would help: {prediction.remedy}",
    ]
    return "\n".join(lines)


def _most(configuration: Configuration, domain: Domain) -> tuple[int, int]:
    """Agents of the largest system and of the largest block whose arrays this machine can hold several times over."""
    c, room = configuration, _SHARE_OF_MEMORY * memory_here()
    joint = sum(joint_memory(c, domain).values())
    if c.method.rounds:
        joint += c.dataset.copies * episode_memory(domain)
    return int(room / joint), int(room / sum(owners_memory(c, domain).values()))


def sizes_of_blocks(size: int, most: int) -> list[int]:
    """What is measured for a size: itself, or the most and a quarter of it."""
    return [size] if size <= most else sorted({max(1, most // 4), most})


def sizes_of_systems(configuration: Configuration, most: int) -> list[int]:
    """The same for systems: the nearest smaller numbers of agents that the domain can have, else all agents."""
    sizes = [_next_valid(configuration, size) for size in sizes_of_blocks(configuration.agents, most)]
    return sorted({size for size in sizes if size}) or [configuration.agents]


def _next_valid(configuration: Configuration, most: int) -> int | None:
    """The largest valid number of agents up to a number."""
    for size in range(most, 0, -1):
        try:
            make_domain(configuration.env, size, configuration.domain)
        except UserError:
            continue
        return size
    return None


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
        f"memory: {memory['rank_0']:,.0f} MiB for rank 0, {memory['owner']:,.0f} for the owner of the largest block, "
        f"{costs.memory:,.0f} of each libraries; {memory['machine']:,.0f} together"
    )
