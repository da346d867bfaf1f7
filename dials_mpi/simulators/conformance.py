"""Tells whether a domain keeps what `interface` promises. For tests, and for people who write their own domain."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from dials_mpi.errors import UserError
from dials_mpi.simulators.actions import available_actions, first_actions, random_actions
from dials_mpi.simulators.interface import Domain, Simulator, Step
from dials_mpi.simulators.replay import Replay, disagreement, replay
from dials_mpi.simulators.values import check_available, earliest, place

_COPIES = 3
_STEPS = 12
_REPLAYED_STEPS = 100
_MOST_REPLAYED_COPIES = 10
_MET_WITH = ("local state", "observation", "reward", "available action", "early end")
"""In the order of `replay.Episode`."""
_REMEDY = (
    "influence_sources must be the u_t of the last step, local_states x_t as it is now, and LocalSimulator must act on "
    "both; random draws are handed over by draws and take_draws; if LocalSimulator approximates, the domain "
    "has a replay_tolerance (dials_mpi/simulators/interface.py)"
)


def check_domain(domain: Domain) -> None:
    """Plays a few steps on both simulators and checks shapes, dtypes, ranges and streams; then lives an episode of the
    global simulator through again in the local one, which must come to the same.

    Raises:
        UserError: the first promise that is broken.
    """
    _check_names(domain)
    _check_graph(domain)
    steps = min(_STEPS, domain.horizon)
    everyone = list(range(domain.n_agents))
    _check_global(domain, steps)
    if domain.influence is None:
        return
    first = _play_local(domain, everyone, _COPIES, steps)
    again = _play_local(domain, everyone, _COPIES, steps, warm_up=2)
    _same(domain, first, again, "LocalSimulator: the same seeds give another episode after an earlier, unfinished one")
    one = everyone[-1]
    alone = _play_local(domain, [one], _COPIES, steps)
    _same(
        domain,
        [array[-1:] for array in first],
        alone,
        "LocalSimulator: an agent alone lives another episode than among others; it must draw from its own stream only",
    )
    _check_replay(domain)


def check_start(domain: Domain) -> None:
    """Starts each simulator once, small: what is missing on this machine is said before anything else is done.

    Raises:
        UserError: from the simulators.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="dials_mpi-")
    except OSError as error:
        raise UserError(f"no folder for temporary files ({error}); set TMPDIR to one that can be written") from error
    with folder as path:
        scratch, domain.scratch = domain.scratch, Path(path)
        try:
            _start_once(domain)
        finally:
            domain.scratch = scratch


def _start_once(domain: Domain) -> None:
    with domain.global_simulator(1) as simulator:
        simulator.seed([np.random.default_rng(0)])
        simulator.reset()
    if domain.influence:
        with domain.local_simulator([0], 1) as simulator:
            simulator.seed([np.random.default_rng(0)])
            simulator.reset()


def _check_names(domain: Domain) -> None:
    sizes = {"observation_names": domain.observation_size, "action_names": domain.action_size or domain.n_actions}
    for attribute, size in sizes.items():
        if len(set(getattr(domain, attribute))) != size or len(getattr(domain, attribute)) != size:
            raise UserError(f"domain {domain.name}: {attribute} is not {size} different names")
    if domain.kinds is not None and len(domain.kinds) != domain.n_agents:
        raise UserError(f"domain {domain.name}: {len(domain.kinds)} kinds for {domain.n_agents} agents")
    rows, columns = domain.grid_shape
    if rows * columns != domain.n_agents:
        raise UserError(f"domain {domain.name}: a grid of {rows} × {columns} for {domain.n_agents} agents")


def _check_graph(domain: Domain) -> None:
    graph = domain.graph
    if graph is None:
        return
    import networkx  # not before a domain has a graph, and so has imported it

    n = domain.n_agents
    if not isinstance(graph, networkx.Graph):
        complaint = f"is no networkx graph but {type(graph).__name__}"
    elif graph.is_directed():
        complaint = "is directed; give its to_undirected()"
    elif strangers := [node for node in graph if node not in range(n)]:
        complaint = f"has a node {strangers[0]!r}, which is no agent"
    elif missing := [agent for agent in range(n) if agent not in graph]:
        complaint = f"lacks agent {missing[0]}; add it as a node, if need be without edges"
    elif loops := list(networkx.nodes_with_selfloops(graph)):
        complaint = f"joins agent {loops[0]} with itself; leave that out"
    else:
        return
    raise UserError(f"domain {domain.name}: graph {complaint} (its nodes are the agents, 0 to {n - 1})")


def _check_global(domain: Domain, steps: int) -> None:
    everywhere = list(range(_COPIES))
    first = _play_global(domain, None, everywhere, steps)
    again = _play_global(domain, None, everywhere, steps, warm_up=2)
    _same(domain, first, again, "GlobalSimulator: the same seeds give another episode after an earlier, unfinished one")
    alone = _play_global(domain, None, everywhere[-1:], steps)
    _same(
        domain,
        [array[:, :, -1:] for array in first],
        alone,
        "GlobalSimulator: a copy alone lives another episode than among others; it must draw from its own stream only",
    )
    for controller in domain.controllers:
        _play_global(domain, controller, everywhere, steps)


def _play_global(
    domain: Domain, controller: str | None, copies: list[int], steps: int, warm_up: int = 0
) -> list[np.ndarray]:
    """Observations, rewards, ends, influence sources, local states and masks of some steps, each [N, steps, B, …]."""
    n, b = domain.n_agents, len(copies)
    at = _Checks(domain, "GlobalSimulator", range(n), copies)
    generators = [np.random.default_rng(100 + copy) for copy in copies]
    seen = [[] for _ in range(6)]
    with domain.global_simulator(b, controller) as simulator:

        def first() -> np.ndarray | None:
            return None if controller else first_actions(domain, (n, b), available_actions(domain, simulator))

        _warm_up(simulator, b, warm_up, lambda: simulator.step(first()))
        simulator.seed([np.random.default_rng(copy) for copy in copies])
        at.observations(simulator.reset(), -1)
        masks = at.available(simulator, -1)
        if domain.influence:
            at.local_states(simulator)
            at.draws(simulator)
        for t in range(steps):
            drawn = [random_actions(domain, g, (n,), masks[:, i]) for i, g in enumerate(generators)]
            actions = np.stack(drawn, axis=1)
            step = simulator.step(None if controller else actions)
            at.step(step, t)
            seen[0].append(step.observations.copy())
            seen[1].append(step.rewards.copy())
            seen[2].append(at.terminated(step).copy())
            if domain.influence:
                seen[3].append(at.influence_sources(simulator).copy())
                seen[4].append(at.local_states(simulator).copy())
                at.draws(simulator)
            masks = at.available(simulator, t)
            seen[5].append(masks.copy())
    return [np.stack(arrays, axis=1) for arrays in seen if arrays]


def _play_local(domain: Domain, agents: list[int], copies: int, steps: int, warm_up: int = 0) -> list[np.ndarray]:
    """Observations, rewards, local states, ends and masks of some steps, each [A, steps, B, …]."""
    a, influence = len(agents), domain.influence
    at = _Checks(domain, "LocalSimulator", agents, range(copies))
    generators = [np.random.default_rng(100 + agent) for agent in agents]
    seen = [[] for _ in range(5)]
    with domain.local_simulator(agents, copies) as simulator:
        no_sources = np.zeros((a, copies, influence.sources), np.uint8)

        def first() -> np.ndarray:
            return first_actions(domain, (a, copies), available_actions(domain, simulator))

        _warm_up(simulator, a, warm_up, lambda: simulator.step(first(), no_sources))
        simulator.seed([np.random.default_rng(agent) for agent in agents])
        at.observations(simulator.reset(), -1)
        at.local_states(simulator)
        masks = at.available(simulator, -1)
        for t in range(steps):
            drawn = [random_actions(domain, g, (copies,), masks[row]) for row, g in enumerate(generators)]
            actions = np.stack(drawn)
            sources = np.stack([g.integers(influence.classes, size=no_sources.shape[1:]) for g in generators])
            step = simulator.step(actions, sources.astype(np.uint8))
            at.step(step, t)
            masks = at.available(simulator, t)
            arrays = step.observations, step.rewards, at.local_states(simulator), at.terminated(step), masks
            for kept, array in zip(seen, arrays, strict=True):
                kept.append(array.copy())
    return [np.stack(arrays, axis=1) for arrays in seen]


def _check_replay(domain: Domain) -> None:
    """The LS under the recorded actions, sources and draws of the GS must live what the GS has lived."""
    steps = min(_REPLAYED_STEPS, domain.horizon)
    # Of short episodes more: what approximates is judged by means over all of them.
    copies = min(_MOST_REPLAYED_COPIES, max(_COPIES, _COPIES * _REPLAYED_STEPS // steps))
    generator = np.random.default_rng(0)

    def act(_, available: np.ndarray | None) -> np.ndarray:
        return random_actions(domain, generator, (domain.n_agents, copies), available)

    try:
        replayed = replay(domain, copies, act, steps=steps)
    except NotImplementedError as error:
        raise UserError(f"domain {domain.name}: {error}") from error
    for simulator, episode in zip(("GlobalSimulator", "LocalSimulator"), replayed, strict=True):
        checks = _Checks(domain, simulator, range(domain.n_agents), range(copies))
        checks.values("observation", episode.observations, range(-1, steps), domain.observation_range)
        checks.values("reward", episode.rewards, range(steps))
    _check_agreement(domain, replayed)


def _check_agreement(domain: Domain, replayed: Replay) -> None:
    first, often, most = None, [], 0.0
    for what, recorded, relived in zip(_MET_WITH, *replayed, strict=True):
        if recorded is None:
            continue
        apart = disagreement(recorded, relived)
        most = max(most, apart.max())
        differs = recorded != relived
        agent_steps = differs.reshape(*differs.shape[:3], -1).any(axis=-1)
        often.append(f"{agent_steps.sum()} of {agent_steps.size} {what}s")
        differs[apart <= domain.replay_tolerance] = False
        if not differs.any():
            continue
        agent, t, copy, *entry = index = earliest(differs)
        step = t if what in ("reward", "early end") else t - 1
        if first is None or step < first[0]:
            name = f"{what} (entry {entry[0]})" if entry else what
            values = f"{float(relived[index]):g} instead of {float(recorded[index]):g}"
            first = step, f"{place(step, agent, copy)}, where the {name} is {values}"
    if first:
        raise UserError(
            f"domain {domain.name}: LocalSimulator, given the actions and influence sources of an episode of "
            f"GlobalSimulator, lives another one: first at {first[1]}; different are {', '.join(often)} (disagreement "
            f"{most:.2g}, replay_tolerance {domain.replay_tolerance:g}); {_REMEDY}"
        )


def _warm_up(simulator, n_generators: int, steps: int, step) -> None:
    """An unfinished episode whose traces must not show afterwards."""
    if steps:
        simulator.seed([np.random.default_rng(1000 + i) for i in range(n_generators)])
        simulator.reset()
        for _ in range(steps):
            step()


class _Checks:
    """What is checked wherever a simulator returns something.

    Args:
        simulator: its kind.
        agents, copies: ids of those that the simulator holds.
    """

    def __init__(self, domain: Domain, simulator: str, agents: Sequence[int], copies: Sequence[int]):
        self._domain = domain
        self._simulator = simulator
        self._agents = agents
        self._copies = copies
        self._size = (len(agents), len(copies))
        self._over = np.zeros(self._size, bool)

    def step(self, step: Step, t: int) -> None:
        self.observations(step.observations, t)
        self._expect("step: rewards", step.rewards, (), np.float32)
        self.values("reward", step.rewards[:, None], [t])
        self._absorbed(step, t)
        self._over, self._seen = self.terminated(step).copy(), step.observations.copy()

    def terminated(self, step: Step) -> np.ndarray:
        """[A, B] bool."""
        if step.terminated is None:
            return np.zeros(self._size, bool)
        if self._domain.absorbing_reward is None:
            self._refuse(".step: terminated is given, but the domain has no absorbing_reward")
        self._expect("step: terminated", step.terminated, (), bool)
        return step.terminated

    def _absorbed(self, step: Step, t: int) -> None:
        """An agent whose episode was over before step `t` is as the last step has left it."""
        if not self._over.any():
            return
        reward = self._domain.absorbing_reward
        for differs, complaint in (
            (~self.terminated(step), "goes on"),
            (step.rewards != np.float32(reward), f"gets another reward than absorbing_reward, {reward:g},"),
            ((step.observations != self._seen).any(axis=-1), "sees something else"),
        ):
            for row, column in np.argwhere(self._over & differs)[:1]:
                where = place(t, self._agents[row], self._copies[column])
                self._refuse(f": {where} {complaint} although its episode was over before")

    def observations(self, observations: np.ndarray, t: int) -> None:
        """Those after step `t`; -1: after a reset."""
        what = "reset: observations" if t < 0 else "step: observations"
        self._expect(what, observations, (self._domain.observation_size,), None)
        self.values("observation", observations[:, None], [t], self._domain.observation_range)

    def available(self, simulator: Simulator, t: int) -> np.ndarray:
        """[A, B, n_actions] bool after step `t`; -1: after a reset."""
        try:
            available = available_actions(self._domain, simulator)
            if available is None:
                return np.ones((*self._size, self._domain.n_actions), bool)
            self._expect("available_actions", available, (self._domain.n_actions,), bool)
            check_available(self._domain, self._simulator, self._agents, self._copies, available[:, None], [t])
        except (NotImplementedError, FloatingPointError) as error:
            raise UserError(str(error)) from error
        return available

    def local_states(self, simulator) -> np.ndarray:
        local_states = simulator.local_states()
        self._expect("local_states", local_states, (self._domain.influence.local_state_size,), np.uint8)
        return local_states

    def influence_sources(self, simulator) -> np.ndarray:
        influence, sources = self._domain.influence, simulator.influence_sources()
        self._expect("influence_sources", sources, (influence.sources,), np.uint8)
        if sources.max(initial=0) >= influence.classes:
            self._refuse(
                f".influence_sources holds class {sources.max()}; the domain declares classes 0 to "
                f"{influence.classes - 1}"
            )
        return sources

    def draws(self, simulator) -> None:
        draws = simulator.draws()
        if draws is not None and (not isinstance(draws, np.ndarray) or draws.shape[:2] != self._size):
            shape = getattr(draws, "shape", type(draws).__name__)
            self._refuse(
                f".draws returns {shape}, neither None nor an array of shape ({self._size[0]}, {self._size[1]}, …)"
            )

    def values(self, what: str, values: np.ndarray, steps: Sequence[int], bounds=(-np.inf, np.inf)) -> None:
        """Values [A, T, B, …] of T steps are finite and within their bounds."""
        low, high = bounds
        for bad, complaint in (
            (~np.isfinite(values), "is not finite"),
            ((values < low) | (values > high), f"is outside observation_range, {low:g} to {high:g}"),
        ):
            if bad.any():
                row, t, column, *_ = index = earliest(bad)
                where = place(steps[t], self._agents[row], self._copies[column])
                self._refuse(f": {what} {float(values[index]):g} at {where} {complaint}")

    def _expect(self, what: str, array, shape: tuple[int, ...], dtype) -> None:
        shape = (*self._size, *shape)
        if not isinstance(array, np.ndarray):
            self._refuse(f".{what} is no numpy array but {type(array).__name__}")
        if array.shape != shape:
            self._refuse(f".{what} has shape {array.shape}, not {shape}")
        if dtype is not None and array.dtype != dtype:
            self._refuse(f".{what} has dtype {array.dtype}, not {np.dtype(dtype)}")

    def _refuse(self, complaint: str) -> NoReturn:
        raise UserError(f"domain {self._domain.name}: {self._simulator}{complaint}")


def _same(domain: Domain, first, second, complaint: str) -> None:
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        raise UserError(f"domain {domain.name}: {complaint}")
