"""Tells whether a domain keeps what `interface` promises. For tests, and for people who write their own domain."""

import tempfile
from pathlib import Path

import numpy as np

from dials_mpi.errors import UserError
from dials_mpi.simulators.interface import Domain

_COPIES = 3
_STEPS = 12


def check_domain(domain: Domain) -> None:
    """Plays a few steps on both simulators and checks shapes, dtypes, ranges and streams.

    Raises:
        UserError: the first promise that is broken.
    """
    _check_names(domain)
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
    for attribute, size in (("observation_names", domain.observation_size), ("action_names", domain.n_actions)):
        if len(set(getattr(domain, attribute))) != size or len(getattr(domain, attribute)) != size:
            raise UserError(f"domain {domain.name}: {attribute} is not {size} different names")
    rows, columns = domain.grid_shape
    if rows * columns != domain.n_agents:
        raise UserError(f"domain {domain.name}: a grid of {rows} × {columns} for {domain.n_agents} agents")


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
    """Observations, rewards, influence sources and local states of some steps, each [N, steps, B, …]."""
    n, b = domain.n_agents, len(copies)
    generators = [np.random.default_rng(100 + copy) for copy in copies]
    seen = [[] for _ in range(4)]
    with domain.global_simulator(b, controller) as simulator:
        _warm_up(simulator, b, warm_up, lambda: simulator.step(None if controller else np.zeros((n, b), np.int64)))
        simulator.seed([np.random.default_rng(copy) for copy in copies])
        _check_observations(domain, simulator.reset(), (n, b), "GlobalSimulator.reset")
        if domain.influence:
            _check_local_states(domain, simulator, (n, b), "GlobalSimulator")
        for _ in range(steps):
            actions = np.stack([g.integers(domain.n_actions, size=n) for g in generators], axis=1)
            step = simulator.step(None if controller else actions)
            _check_step(domain, step, (n, b), "GlobalSimulator")
            seen[0].append(step.observations.copy())
            seen[1].append(step.rewards.copy())
            if domain.influence:
                sources = simulator.influence_sources()
                shape = (n, b, domain.influence.sources)
                _expect(domain, "GlobalSimulator.influence_sources", sources, shape, np.uint8, domain.influence.classes)
                seen[2].append(sources.copy())
                seen[3].append(_check_local_states(domain, simulator, (n, b), "GlobalSimulator").copy())
    return [np.stack(arrays, axis=1) for arrays in seen if arrays]


def _play_local(domain: Domain, agents: list[int], copies: int, steps: int, warm_up: int = 0) -> list[np.ndarray]:
    """Observations, rewards and local states of some steps, each [A, steps, B, …]."""
    a, influence = len(agents), domain.influence
    generators = [np.random.default_rng(100 + agent) for agent in agents]
    seen = [[] for _ in range(3)]
    with domain.local_simulator(agents, copies) as simulator:
        no_actions, no_sources = np.zeros((a, copies), np.int64), np.zeros((a, copies, influence.sources), np.uint8)
        _warm_up(simulator, a, warm_up, lambda: simulator.step(no_actions, no_sources))
        simulator.seed([np.random.default_rng(agent) for agent in agents])
        _check_observations(domain, simulator.reset(), (a, copies), "LocalSimulator.reset")
        _check_local_states(domain, simulator, (a, copies), "LocalSimulator")
        for _ in range(steps):
            actions = np.stack([g.integers(domain.n_actions, size=copies) for g in generators])
            sources = np.stack([g.integers(influence.classes, size=no_sources.shape[1:]) for g in generators])
            step = simulator.step(actions, sources.astype(np.uint8))
            _check_step(domain, step, (a, copies), "LocalSimulator")
            local_states = _check_local_states(domain, simulator, (a, copies), "LocalSimulator")
            for arrays, array in zip(seen, (step.observations, step.rewards, local_states), strict=True):
                arrays.append(array.copy())
    return [np.stack(arrays, axis=1) for arrays in seen]


def _warm_up(simulator, n_generators: int, steps: int, step) -> None:
    """An unfinished episode whose traces must not show afterwards."""
    if steps:
        simulator.seed([np.random.default_rng(1000 + i) for i in range(n_generators)])
        simulator.reset()
        for _ in range(steps):
            step()


def _check_observations(domain: Domain, observations, size: tuple[int, int], what: str) -> None:
    _expect(domain, f"{what}: observations", observations, (*size, domain.observation_size), None)


def _check_step(domain: Domain, step, size: tuple[int, int], simulator: str) -> None:
    _check_observations(domain, step.observations, size, f"{simulator}.step")
    _expect(domain, f"{simulator}.step: rewards", step.rewards, size, np.float32)


def _check_local_states(domain: Domain, simulator, size: tuple[int, int], name: str) -> np.ndarray:
    local_states = simulator.local_states()
    shape = (*size, domain.influence.local_state_size)
    _expect(domain, f"{name}.local_states", local_states, shape, np.uint8)
    return local_states


def _expect(domain: Domain, what: str, array, shape: tuple[int, ...], dtype, classes: int | None = None) -> None:
    prefix = f"domain {domain.name}: {what}"
    if not isinstance(array, np.ndarray):
        raise UserError(f"{prefix} is no numpy array but {type(array).__name__}")
    if array.shape != shape:
        raise UserError(f"{prefix} has shape {array.shape}, not {shape}")
    if dtype is not None and array.dtype != dtype:
        raise UserError(f"{prefix} has dtype {array.dtype}, not {np.dtype(dtype)}")
    if not np.isfinite(array).all():
        raise UserError(f"{prefix} holds values that are not finite")
    if classes is not None and array.max(initial=0) >= classes:
        raise UserError(f"{prefix} holds class {array.max()}; the domain declares classes 0 to {classes - 1}")


def _same(domain: Domain, first, second, complaint: str) -> None:
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        raise UserError(f"domain {domain.name}: {complaint}")
