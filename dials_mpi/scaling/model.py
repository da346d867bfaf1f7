"""What a run takes on any number of ranks, cores and machines, from what its work costs on one core.

Ranks on a machine are placed there in blocks of consecutive ones. Those that share cores take turns: work ends when its
longest piece has ended, and not before the cores have done all of it. A transfer takes the latency of a message from
or to every rank, and the time of its bytes on the busiest machine's line. Not in the model: writing, MPI's own start,
ranks that wait because one core is slower than another. Needs neither torch nor MPI.
"""

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.config import Configuration
from dials_mpi.errors import UserError
from dials_mpi.parallel.layout import Layout
from dials_mpi.training.plan import batch_sizes, plan, update_steps

MIB = 1 << 20
PHASES = ("start", "act", "collect", "scatter", "aip_training", "learn", "gather", "evaluate")
"""`act` is rank 0's on the GS in mode gs; `learn` is all of `simulate`, `act` and `ppo_update` on the IALSs; `evaluate`
is what learning does not hide, with the hand-coded references."""
_COSTLY_SETTINGS = {
    "env": None,
    "mode": None,
    "domain": None,
    "policy": None,
    "predictor": ("recurrent_size", "hidden_sizes", "minibatch_size", "sees_actions"),
    "ppo": ("copies", "rollout_length", "sequence_length", "minibatch_size", "epochs"),
    "dataset": ("copies",),
    "evaluation": ("copies",),
}
"""Sections, where a method has them, and which of their settings costs depend on; None: all."""
_DATASET_ARRAYS = 4  # history, influence sources, actions, and the returns
_ROLLOUT_ARRAYS = 7

_LIMITS = {
    "start": ("starting the ranks", "longer runs; fewer ranks per core"),
    "act": ("rank 0, which acts for all agents on the global simulator", "mode dials"),
    "scatter": ("sending the datasets", "more collectors on more machines; a longer interval F"),
    "aip_training": ("AIP training", "fewer agents per rank; fewer epochs; a longer interval F"),
    "gather": (
        "gathering the policies",
        "a hierarchical gather, one message per machine; a longer evaluation interval",
    ),
    "learn": ("learning, as it should be", "more ranks, while they have agents and cores"),
}


@dataclass(frozen=True)
class Curve:
    """A cost by size, straight between the sizes at which it was measured.

    Beyond them it goes on in proportion to the line a + b · size through all points (least relative squares, neither
    below 0): a call costs something, and every agent the same. A single point stands for proportion.
    """

    points: tuple[tuple[int, float], ...] = ()
    """(size, cost), sizes ascending; without any the cost is 0."""

    def __call__(self, size: int) -> float:
        if not self.points or size == 0:
            return 0.0
        sizes, costs = zip(*self.points, strict=True)
        edge = min(max(size, sizes[0]), sizes[-1])
        cost = float(np.interp(edge, sizes, costs))
        if edge == size or cost == 0:
            return cost
        a, b = self.line
        return cost * (a + b * size) / (a + b * edge)

    @property
    def line(self) -> tuple[float, float]:
        """a, b."""
        sizes, costs = np.array(self.points).T
        weights = 1 / np.maximum(costs, 1e-3 * costs.max())
        columns = np.stack([weights, weights * sizes], axis=1)
        if len(sizes) > 1:
            a, b = np.linalg.lstsq(columns, weights * costs, rcond=None)[0]
            if a >= 0 and b >= 0:
                return float(a), float(b)
            if b < 0:
                return float((weights**2 * costs).sum() / (weights**2).sum()), 0.0
        slope = columns[:, 1]
        return 0.0, float((slope * weights * costs).sum() / (slope**2).sum())


@dataclass(frozen=True)
class Costs:
    """What the work of a configuration costs on one core. N: agents of the system; A: of a rank's block.

    Seconds are of a core that has nothing else to do, memory is resident MiB, libraries shared by ranks included.
    """

    settings: dict[str, Any]
    """The settings that it holds for; see `check`."""
    horizon: int
    """Steps per episode."""
    controllers: int
    """Hand-coded ones of the domain."""
    start: float
    """Seconds until a rank has loaded its libraries."""
    block_start: Curve
    """A → seconds until the block's networks and simulators stand."""
    learn: Curve
    """A → seconds of a PPO update with its rollout on the IALSs; in mode gs, without it."""
    act: Curve
    """N → seconds of a rollout of all agents on the GS; of use in mode gs alone."""
    epoch: Curve
    """A → seconds of an epoch of AIP training, per episode of the dataset."""
    setup: Curve
    """N → seconds until a GS stands."""
    collect: Curve
    """N → seconds of a joint step of one copy, GS and joint policy, with `dataset.copies` side by side."""
    evaluate: Curve
    """N → the same with `evaluation.copies` side by side."""
    reference: Curve
    """N → the same, driven by a hand-coded controller."""
    policy_bytes: int
    """Of an agent's policy."""
    dataset_bytes: int
    """Of an agent's row of a dataset, per step."""
    rollout_bytes: int
    """Of an agent's rollout."""
    memory: float
    """MiB of a rank without agents."""
    block_memory: Curve
    """A → MiB more, without the block's dataset."""
    joint_memory: Curve
    """N → MiB more on a collector: joint policy, GS, a batch of episodes."""

    def check(self, configuration: Configuration, source: str) -> None:
        """Raises UserError if they are of other settings; `source` says where they come from."""
        wanted = costly_settings(configuration)
        for key in sorted(wanted.keys() | self.settings.keys()):
            if wanted.get(key) != self.settings.get(key):
                raise UserError(
                    f"{source}: measured with {key} {self.settings.get(key)}, not {wanted.get(key)}; measure again"
                )

    def extrapolated(self, layout: Layout) -> list[str]:
        """What of a layout is larger or smaller than all that was measured, in words."""
        parts = [("joint steps", self.evaluate, layout.n_agents), ("blocks", self.learn, max(layout.counts()))]
        return [
            f"{what} of {size:,} agents from {curve.points[0][0]:,} to {curve.points[-1][0]:,}"
            for what, curve, size in parts
            if not curve.points[0][0] <= size <= curve.points[-1][0]
        ]

    def as_record(self) -> dict[str, Any]:
        """For JSON; curves are lists of [size, cost]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.points if isinstance(value, Curve) else value for name, value in values.items()}

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(self.as_record(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Costs":
        """What `write` wrote.

        Raises:
            UserError: it cannot be read, or holds no costs.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{field.name: _checked(field, values[field.name]) for field in fields(cls)})
        except KeyError as error:
            raise UserError(f"{file}: no costs: it lacks {error}; write it with --write") from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}: no costs ({error}); write it with --write") from error


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """The value of a field of `Costs` from JSON; raises ValueError or TypeError."""
    if field.name == "settings":
        if not isinstance(value, dict):
            raise ValueError(f"{field.name}: {value!r} is no mapping")
        return value
    if field.type is Curve:
        points = tuple((int(size), float(cost)) for size, cost in value)
        sizes = [size for size, _ in points]
        if sizes != sorted(set(sizes)) or any(size < 1 or not 0 <= cost < math.inf for size, cost in points):
            raise ValueError(f"{field.name}: {value!r} are no ascending sizes with costs from 0 on")
        return Curve(points)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{field.name}: {value!r} is no number from 0 on")
    return value


def costly_settings(configuration: Configuration) -> dict[str, Any]:
    """The settings that costs depend on, by name, as JSON has them."""
    values, found = configuration.model_dump(mode="json"), {}
    for section, keys in _COSTLY_SETTINGS.items():
        if section not in values:
            continue
        if isinstance(values[section], dict):
            found |= {f"{section}.{key}": values[section][key] for key in keys or values[section]}
        else:
            found[section] = values[section]
    return found


@dataclass(frozen=True)
class Cluster:
    """Machines of one kind and the network between them."""

    cores: int
    """For ranks, per machine."""
    machines: int = 1
    bandwidth: float = 10e9
    """Bytes per second into and out of a machine."""
    latency: float = 5e-6
    """Seconds per message."""
    memory: float = math.inf
    """MiB per machine."""


@dataclass(frozen=True)
class Prediction:
    """What a run takes."""

    seconds: dict[str, float]
    """By `PHASES`; all ranks together go through one after the other."""
    evaluating: float
    """Seconds that rank 0 evaluates, hidden behind learning or not."""
    counts: dict[str, int]
    """`updates`, `rounds` of AIP training, `evaluations` (those by collection included) and `gathers`."""
    agent_steps: int
    """Training steps of all agents together."""
    efficiency: float
    """Share of the time of all cores that is learning."""
    memory: dict[str, float]
    """MiB of `rank_0`, of an `owner` of the largest block, of the fullest `machine`."""
    limit: str
    """The phase or resource that limits, in words."""
    remedy: str
    """What would lift the limit."""

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())

    @property
    def agent_steps_per_second(self) -> float:
        return self.agent_steps / self.total

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "total": self.total, "agent_steps_per_second": self.agent_steps_per_second}


def predict(configuration: Configuration, layout: Layout, costs: Costs, cluster: Cluster) -> Prediction:
    """What a run takes in a layout on a cluster, from its start to its end.

    Args:
        costs: of the configuration's settings.
    """
    return _Model(configuration, layout, costs, cluster).run()


class _Model:
    """One run, gone through segment by segment."""

    def __init__(self, configuration: Configuration, layout: Layout, costs: Costs, cluster: Cluster):
        self._configuration = configuration
        self._layout = layout
        self._costs = costs
        self._cluster = cluster
        self._counts = np.array(layout.counts())
        self._per_machine = -(-layout.n_ranks // cluster.machines)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._evaluating = self._gathers = 0

    def run(self) -> Prediction:
        c, costs, layout, seconds = self._configuration, self._costs, self._layout, self._seconds
        segments = plan(c, costs.horizon)
        total_steps = segments[-1].stop
        per_update = update_steps(c, costs.horizon)
        updates = total_steps // per_update
        own_updates = self._by_block(costs.learn)
        seconds["start"] = self._span(costs.start + self._by_block(costs.block_start))
        references = batch_sizes(c.evaluation.handcoded_episodes, c.evaluation.copies)
        for _ in range(costs.controllers):
            # Every batch has a GS of its own.
            setups = -(-len(references) // layout.n_collectors)
            self._evaluate_together(self._shared(references, costs.reference, setups))
        self._gather()

        @functools.cache
        def learning(updates: int, waiting: float) -> tuple[float, float]:
            """Seconds of a segment, without and with what rank 0 has to do beside it."""
            work = own_updates * updates
            alone = self._span(work)
            work[0] += waiting
            return alone, self._span(work)

        waiting = 0.0 if segments[0].collection_evaluates else self._alone()
        for segment in segments:
            if segment.round is not None:
                for phase, spent in self._collection.items():
                    seconds[phase] += spent
            done = (segment.stop - segment.start) // per_update
            alone, together = learning(done, waiting)
            seconds["learn"] += alone
            if c.method.learns_on_gs:
                self._act(done)
                seconds["evaluate"] += waiting  # rank 0 is needed for acting
            else:
                seconds["evaluate"] += together - alone
            waiting = 0.0
            self._gather()
            if segment.evaluates and (layout.coordinator_works or segment.stop == total_steps):
                self._evaluate_together(self._evaluation)
            elif segment.evaluates:
                waiting = self._alone()
        rounds = sum(segment.round is not None for segment in segments)
        evaluations = sum(s.evaluates + s.collection_evaluates for s in segments)
        evaluations += not segments[0].collection_evaluates
        memory = self._memory()
        total = sum(seconds.values())
        learnt = own_updates.sum() * updates
        return Prediction(
            seconds,
            self._evaluating,
            {"updates": updates, "rounds": rounds, "evaluations": evaluations, "gathers": self._gathers},
            total_steps * c.agents,
            learnt / (total * self._cluster.cores * self._cluster.machines) if total else 0.0,
            memory,
            *self._limit(memory, total),
        )

    def _by_block(self, cost: Curve) -> np.ndarray:
        """[n_ranks] what the blocks cost."""
        sizes, which = np.unique(self._counts, return_inverse=True)
        return np.array([cost(int(size)) for size in sizes])[which]

    def _machines(self, values: np.ndarray) -> list[np.ndarray]:
        """[n_ranks] → by machine."""
        return np.split(values, range(self._per_machine, len(values), self._per_machine))

    def _span(self, work: np.ndarray) -> float:
        """Seconds until all ranks have done their work, [n_ranks] seconds of a core each."""
        return max(float(max(part.max(), part.sum() / self._cluster.cores)) for part in self._machines(work))

    def _turns(self, batches: Sequence[int]) -> Counter[tuple[tuple[int, int], ...]]:
        """Which turns there are, as rank and episodes of each collector that plays, and how often."""
        return Counter(tuple((r, batches[b]) for r, b in turn.items()) for turn in self._layout.turns(len(batches)))

    def _at_play(self, turn: tuple[tuple[int, int], ...], cost: Curve) -> float:
        """Seconds of one turn."""
        work = np.zeros(self._layout.n_ranks)
        for rank, copies in turn:
            work[rank] = copies * self._costs.horizon * cost(self._layout.n_agents)
        return self._span(work)

    def _set_up(self, n_batches: int) -> float:
        """Seconds until the collectors' simulators stand."""
        work = np.zeros(self._layout.n_ranks)
        for rank in self._layout.collectors[:n_batches]:
            work[rank] = self._costs.setup(self._layout.n_agents)
        return self._span(work)

    def _evaluate_together(self, seconds: float) -> None:
        """The collectors share batches of episodes, and nobody does anything else."""
        self._seconds["evaluate"] += seconds
        self._evaluating += seconds

    def _shared(self, batches: Sequence[int], cost: Curve, setups: int) -> float:
        """Seconds of batches of episodes that the collectors share."""
        played = sum(times * self._at_play(turn, cost) for turn, times in self._turns(batches).items())
        return setups * self._set_up(len(batches)) + played

    @functools.cached_property
    def _evaluation(self) -> float:
        """Seconds of an evaluation that the collectors share."""
        c = self._configuration.evaluation
        return self._shared(batch_sizes(c.episodes, c.copies), self._costs.evaluate, setups=1)

    def _alone(self) -> float:
        """Seconds of an evaluation by rank 0."""
        c, n_agents = self._configuration, self._layout.n_agents
        steps = c.evaluation.episodes * self._costs.horizon
        seconds = self._costs.setup(n_agents) + steps * self._costs.evaluate(n_agents)
        self._evaluating += seconds
        return seconds

    @functools.cached_property
    def _collection(self) -> dict[str, float]:
        """Seconds of a round, by phase."""
        c, costs = self._configuration, self._costs
        batches = batch_sizes(-(-c.dataset.steps // costs.horizon), c.dataset.copies)
        seconds = {"collect": self._shared(batches, costs.collect, setups=1), "scatter": 0.0}
        row = costs.horizon * costs.dataset_bytes
        for turn, times in self._turns(batches).items():
            columns = np.zeros(self._layout.n_ranks)
            for rank, episodes in turn:
                columns[rank] = episodes
            sent = columns * row * self._layout.n_agents
            received = self._counts * row * columns.sum()
            seconds["scatter"] += times * self._transfer(_DATASET_ARRAYS, sent, received)
        return {**seconds, "aip_training": self._aip_training()}

    def _aip_training(self) -> float:
        """Seconds of a round, if it stops midway between the fewest epochs that `patience` allows and all."""
        c = self._configuration
        epochs = (min(c.predictor.patience, c.predictor.epochs) + c.predictor.epochs) / 2
        episodes = -(-c.dataset.steps // self._costs.horizon)
        return self._span(self._by_block(self._costs.epoch)) * episodes * epochs

    def _act(self, updates: int) -> None:
        """Mode gs: rank 0 acts for all; policies come to it and rollouts go from it with every update."""
        layout, costs = self._layout, self._costs
        self._seconds["act"] += updates * costs.act(layout.n_agents)
        sent = np.zeros(layout.n_ranks)
        sent[0] = layout.n_agents * costs.rollout_bytes
        received = self._counts * costs.rollout_bytes
        self._seconds["scatter"] += updates * self._transfer(_ROLLOUT_ARRAYS, sent, received)
        self._gather(updates - 1)

    def _gather(self, times: int = 1) -> None:
        """Policies to one collector of every machine that has some."""
        self._gathers += times
        self._seconds["gather"] += times * self._gathering

    @functools.cached_property
    def _gathering(self) -> float:
        """Seconds of a gather."""
        row, layout = self._costs.policy_bytes, self._layout
        hosts = {rank // self._per_machine: rank for rank in reversed(layout.collectors)}
        received = np.zeros(layout.n_ranks)
        received[list(hosts.values())] = layout.n_agents * row
        return self._transfer(1, self._counts * row * len(hosts), received)

    def _transfer(self, calls: int, sent: np.ndarray, received: np.ndarray) -> float:
        """Seconds; bytes [n_ranks]."""
        if self._layout.n_ranks == 1:
            return 0.0
        most = max(part.sum() for way in (sent, received) for part in self._machines(way))
        return calls * self._layout.n_ranks * self._cluster.latency + most / self._cluster.bandwidth

    def _memory(self) -> dict[str, float]:
        c, costs, layout = self._configuration, self._costs, self._layout
        dataset = c.dataset.steps * costs.dataset_bytes / MIB if c.method.rounds else 0.0
        ranks = costs.memory + self._by_block(costs.block_memory) + self._counts * dataset
        owner = float(ranks.max())
        ranks[layout.collectors] += costs.joint_memory(layout.n_agents)
        collecting = np.zeros(layout.n_ranks)
        collecting[layout.collectors] = 1
        policies = layout.n_agents * costs.policy_bytes / MIB  # of which a machine has one copy
        machines = [
            float(memory.sum() - policies * max(0, collectors.sum() - 1))
            for memory, collectors in zip(self._machines(ranks), self._machines(collecting), strict=True)
        ]
        return {"rank_0": float(ranks[0]), "owner": owner, "machine": max(machines)}

    def _limit(self, memory: Mapping[str, float], total: float) -> tuple[str, str]:
        """What limits, and what would lift it."""
        c, seconds = self._configuration, self._seconds
        for whose, name in (("rank_0", "rank 0"), ("machine", "a machine")):
            if memory[whose] > self._cluster.memory:
                need = f"memory of {name}: {memory[whose]:,.0f} MiB of {self._cluster.memory:,.0f}"
                return need, "fewer copies per batch; fewer ranks or collectors on a machine"
        worst = max((phase for phase in PHASES if phase != "learn"), key=seconds.__getitem__)
        if seconds["learn"] >= total / 2:
            worst = "learn"
        if worst == "collect":
            batches = batch_sizes(-(-c.dataset.steps // self._costs.horizon), c.dataset.copies)
            more = self._more_collectors(batches, "dataset.copies")
            return "collection", f"{more}; a longer interval F; fewer dataset.steps"
        if worst == "evaluate":
            more = self._more_collectors(batch_sizes(c.evaluation.episodes, c.evaluation.copies), "evaluation.copies")
            fewer = "a longer evaluation.interval; fewer episodes, those of hand-coded controllers included"
            if self._layout.n_ranks == 1:
                return "evaluation, which one process does between learning", f"more ranks; {fewer}"
            if self._layout.coordinator_works or c.method.learns_on_gs:
                return "evaluation, for which all ranks wait", f"{more}; {fewer}"
            reason = "the evaluation on rank 0 takes longer than the segment it hides behind"
            return reason, f"sharing it among the collectors; {fewer}"
        return _LIMITS[worst]

    def _more_collectors(self, batches: Sequence[int], copies: str) -> str:
        if self._layout.n_collectors < len(batches):
            return f"more collectors, up to the {len(batches)} batches"
        return f"smaller batches ({copies}) on more collectors"
