"""Tells whether a domain keeps what `interface` promises. For tests, and for people who write their own domain."""

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
    steps = min(_STEPS, domain.horizon)
    everyone = list(range(domain.n_agents))
    _check_global(domain, steps)
    if domain.influence is None:
        return
    first = _play_local(domain, everyone, _COPIES, steps, seeds=everyone)
    again = _play_local(domain, everyone, _COPIES, steps, seeds=everyone, warm_up=2)
    _same(domain, first, again, "LocalSimulator: the same seeds give another episode after an earlier, unfinished one")
    one = everyone[-1]
    alone = _play_local(domain, [one], _COPIES, steps, seeds=[one])
    _same(
        domain,
        [array[-1:] for array in first],
        alone,
        "LocalSimulator: an agent alone lives another episode than among others; it must draw from its own stream only",
    )


def _check_global(domain: Domain, steps: int) -> None:
    first = _play_global(domain, None, steps)
    again = _play_global(domain, None, steps, warm_up=2)
    _same(domain, first, again, "GlobalSimulator: the same seeds give another episode after an earlier, unfinished one")
    for controller in domain.controllers:
        _play_global(domain, controller, steps)


def _play_global(domain: Domain, controller: str | None, steps: int, warm_up: int = 0) -> list[np.ndarray]:
    n = domain.n_agents
    generator = np.random.default_rng(0)
    seen = [[] for _ in range(4)]
    with domain.global_simulator(_COPIES, controller) as simulator:
        _warm_up(simulator, _COPIES, warm_up, lambda: simulator.step(np.zeros((n, _COPIES), np.int64)))
        simulator.seed([np.random.default_rng(copy) for copy in range(_COPIES)])
        _check_observations(domain, simulator.reset(), n, "GlobalSimulator.reset")
        for _ in range(steps):
            actions = generator.integers(domain.n_actions, size=(n, _COPIES))
            step = simulator.step(None if controller else actions)
            _check_observations(domain, step.observations, n, "GlobalSimulator.step")
            _expect(domain, "GlobalSimulator.step: rewards", step.rewards, (n, _COPIES), np.float32)
            seen[0].append(step.observations.copy())
            seen[1].append(step.rewards.copy())
            if domain.influence:
                sources = simulator.influence_sources()
                local_states = simulator.local_states()
                shape = (n, _COPIES, domain.influence.sources)
                _expect(domain, "GlobalSimulator.influence_sources", sources, shape, np.uint8, domain.influence.classes)
                shape = (n, _COPIES, domain.influence.local_state_size)
                _expect(domain, "GlobalSimulator.local_states", local_states, shape, np.uint8)
                seen[2].append(sources.copy())
                seen[3].append(local_states.copy())
    return [np.stack(arrays, axis=1) for arrays in seen if arrays]


def _play_local(domain: Domain, agents: list[int], copies: int, steps: int, seeds, warm_up: int = 0):
    a, influence = len(agents), domain.influence
    generators = [np.random.default_rng(100 + agent) for agent in agents]
    seen = [[] for _ in range(3)]
    with domain.local_simulator(agents, copies) as simulator:
        no_actions, no_sources = np.zeros((a, copies), np.int64), np.zeros((a, copies, influence.sources), np.uint8)
        _warm_up(simulator, a, warm_up, lambda: simulator.step(no_actions, no_sources))
        simulator.seed([np.random.default_rng(seed) for seed in seeds])
        _check_observations(domain, simulator.reset(), a, "LocalSimulator.reset")
        for _ in range(steps):
            actions = np.stack([g.integers(domain.n_actions, size=copies) for g in generators])
            sources = np.stack([g.integers(influence.classes, size=no_sources.shape[1:]) for g in generators])
            step = simulator.step(actions, sources.astype(np.uint8))
            _check_observations(domain, step.observations, a, "LocalSimulator.step")
            _expect(domain, "LocalSimulator.step: rewards", step.rewards, (a, copies), np.float32)
            local_states = simulator.local_states()
            shape = (a, copies, influence.local_state_size)
            _expect(domain, "LocalSimulator.local_states", local_states, shape, np.uint8)
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


def _check_observations(domain: Domain, observations, n_agents: int, what: str) -> None:
    _expect(domain, f"{what}: observations", observations, (n_agents, _COPIES, domain.observation_size), None)


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
