"""Our worlds for other people's learners: PettingZoo and Gymnasium adapters (extra `envs`).

    GlobalEnvironment("traffic", agents=4)      a PettingZoo ParallelEnv of the GS
    LocalEnvironment("warehouse", agents=25)    a Gymnasium Env of one agent's LS

With libsumo a process can hold one traffic environment at a time; `settings={"backend": "traci"}` gives each a SUMO of
its own.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dials_mpi.config import resolve
from dials_mpi.errors import UserError
from dials_mpi.extras import extra
from dials_mpi.simulators.actions import available_actions
from dials_mpi.simulators.interface import Domain, Simulator
from dials_mpi.simulators.registry import make_domain

with extra("envs", "dials_mpi.environments"):
    import gymnasium
    from gymnasium import spaces
    from gymnasium.error import ResetNeeded
    from pettingzoo import ParallelEnv


def _domain(env: str, agents: int, settings: Mapping[str, Any] | None) -> Domain:
    if not isinstance(settings, Mapping | None):
        raise UserError(f"settings: {settings!r} is no mapping of the domain's settings to values")
    for name in settings or ():
        if not isinstance(name, str):
            raise UserError(f"settings: {name!r} is no name of a setting")
    layers = [("the caller", {"env": env, "agents": _integer("agents", agents), "domain": dict(settings or {})})]
    configuration = resolve(layers, agents, env)
    return make_domain(configuration.env, configuration.agents, configuration.domain)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name}: {value!r} is no integer")
    return int(value)


def _action(name: str, value: Any, domain: Domain, available: np.ndarray | None) -> int | np.ndarray:
    """The action as an int, or [C] float32; ValueError for one that is not in the space or not available.

    Args:
        available: [n_actions] bool; None: all are.
    """
    if domain.action_size:
        return _continuous(name, value, domain)
    n_actions = domain.n_actions
    try:
        action = operator.index(value)
    except TypeError:
        action = -1
    if not 0 <= action < n_actions:
        raise ValueError(f"{name}: {value!r} is none of 0 to {n_actions - 1}")
    if available is not None and not available[action]:
        others = ", ".join(map(str, np.flatnonzero(available)))
        raise ValueError(f"{name}: {value!r} is not available now; there is {others}")
    return action


def _continuous(name: str, value: Any, domain: Domain) -> np.ndarray:
    size, (low, high) = domain.action_size, domain.action_range
    try:
        action = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        action = np.empty(0, np.float32)
    if action.shape != (size,) or not ((action >= low) & (action <= high)).all():
        shown = value.tolist() if isinstance(value, np.ndarray) else value
        raise ValueError(f"{name}: {shown!r} is not {size} number{'s' * (size > 1)} from {low:g} to {high:g}")
    return action


def _mask(available: np.ndarray | None) -> dict[str, np.ndarray]:
    """What `info` says of an agent's [n_actions] bool; nothing in a domain that masks none."""
    return {} if available is None else {"action_mask": available.astype(np.int8)}


def _check_going_on(elapsed: int | None) -> None:
    if elapsed is None:
        raise ResetNeeded("no episode is going on: call reset() before the first step and after an episode's last")


def _spaces(domain: Domain) -> tuple[spaces.Box, spaces.Discrete | spaces.Box]:
    """Of an agent's observations and actions."""
    observations = spaces.Box(*domain.observation_range, (domain.observation_size,), np.float32)
    if domain.action_size:
        return observations, spaces.Box(*domain.action_range, (domain.action_size,), np.float32)
    return observations, spaces.Discrete(domain.n_actions)


def _picture(domain: Domain, simulator: Simulator) -> np.ndarray:
    """[H, W, 3] uint8."""
    with extra("plots", "render"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), dpi=100)
    canvas = FigureCanvasAgg(figure)
    colours, label = domain.draw(simulator, axes := figure.add_subplot())
    figure.colorbar(colours, ax=axes, label=label, shrink=0.7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class GlobalEnvironment(ParallelEnv):
    """The GS in one copy. Agents are called `agent_0` …; the horizon truncates.

    An agent whose episode is over before stays until then, and so do its rewards (`Domain.absorbing_reward`).

    Args:
        env: a built-in domain, or `package.module:ClassName`.
        agents: N.
        settings: of the domain, over those of its configuration file.
        render_mode: `rgb_array` or None.

    In a domain that masks actions `infos[agent]["action_mask"]` [n_actions] int8 is 1 for those available now.

    `step` raises ResetNeeded outside an episode and ValueError for actions that are none or are not available; neither
    changes anything.

    Raises:
        UserError: no such domain or settings.
    """

    metadata = {"name": "dials_mpi", "render_modes": ["rgb_array"]}  # noqa: RUF012 - PettingZoo's protocol

    def __init__(
        self,
        env: str,
        agents: int = 4,
        settings: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ):
        self.render_mode = render_mode
        self._domain = _domain(env, agents, settings)
        self._simulator = self._domain.global_simulator(1)
        self.possible_agents = [f"agent_{i}" for i in range(self._domain.n_agents)]
        self.agents = []
        self._spaces = {agent: _spaces(self._domain) for agent in self.possible_agents}
        self._seeded = False
        self._elapsed: int | None = None

    def observation_space(self, agent: str) -> spaces.Box:
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> spaces.Discrete | spaces.Box:
        return self._spaces[agent][1]

    def reset(self, seed: int | None = None, options: dict | None = None):
        """Starts an episode; a seed starts the random stream anew, too."""
        if seed is not None or not self._seeded:
            self._simulator.seed([np.random.default_rng(seed)])
            self._seeded = True
        self.agents = list(self.possible_agents)
        self._elapsed = 0
        return self._by_agent(self._simulator.reset()[:, 0].astype(np.float32)), self._infos()

    def step(self, actions: Mapping[str, Any]):
        """One step of all agents; returns observations, rewards, terminations, truncations and infos by agent."""
        _check_going_on(self._elapsed)
        step = self._simulator.step(self._joint(actions))
        self._elapsed += 1
        over = self._elapsed == self._domain.horizon
        agents = list(self.agents)
        if over:
            self.agents, self._elapsed = [], None
        return (
            self._by_agent(step.observations[:, 0].astype(np.float32)),
            self._by_agent(step.rewards[:, 0].tolist()),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            self._infos(),
        )

    def render(self) -> np.ndarray | None:
        return _picture(self._domain, self._simulator) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._simulator.close()

    def _joint(self, actions: Mapping[str, Any]) -> np.ndarray:
        """[N, 1] int64, or [N, 1, C] float32."""
        if not isinstance(actions, Mapping):
            raise ValueError(f"actions: {actions!r} is no mapping of agents to actions")
        for agent in actions:
            if agent not in self._spaces:
                raise ValueError(
                    f"actions: {agent!r} is none of {self.possible_agents[0]} to {self.possible_agents[-1]}"
                )
        if missing := [agent for agent in self.possible_agents if agent not in actions]:
            raise ValueError(f"actions: none for {', '.join(missing)}; give one for every agent")
        return np.array(
            [
                [_action(f"actions: {name}", actions[name], self._domain, available)]
                for name, available in zip(self.possible_agents, self._available, strict=True)
            ]
        )

    def _infos(self) -> dict[str, dict[str, np.ndarray]]:
        available = available_actions(self._domain, self._simulator)
        self._available = [None] * self._domain.n_agents if available is None else available[:, 0].copy()
        return self._by_agent(map(_mask, self._available))

    def _by_agent(self, rows) -> dict[str, Any]:
        return dict(zip(self.possible_agents, rows, strict=True))


class LocalEnvironment(gymnasium.Env):
    """The LS of one agent in one copy, under a given influence.

    Args:
        env: a built-in domain, or `package.module:ClassName`.
        agents: N of the system that the agent belongs to.
        agent: whose region.
        influence: local state x_t [D] uint8 and a generator → influence sources u_t [U] integers, called once per step;
            an AIP for example. One with a memory has a method `reset()`, called when an episode starts. By default
            every class of a source is as likely as any other, whatever the local state.
        settings: of the domain, over those of its configuration file.
        render_mode: `rgb_array` or None.

    In a domain that masks actions `info["action_mask"]` [n_actions] int8 is 1 for those available now.

    `step` raises ResetNeeded outside an episode and ValueError for an action or sources that are none, or an action
    that is not available; neither changes anything but the memory of `influence`.

    Raises:
        UserError: no such domain or settings, or a domain without influence.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's protocol

    def __init__(
        self,
        env: str,
        agents: int = 4,
        agent: int = 0,
        influence: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        settings: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ):
        self.render_mode = render_mode
        self._domain = _domain(env, agents, settings)
        if self._domain.influence is None:
            raise UserError(f"env: {env!r} has no local simulators: its domain declares no influence")
        if not 0 <= (agent := _integer("agent", agent)) < self._domain.n_agents:
            raise UserError(f"agent: {agent} is none of 0 to {self._domain.n_agents - 1}")
        self._influence = influence or self._uniform
        self._simulator = self._domain.local_simulator([agent], 1)
        self.observation_space, self.action_space = _spaces(self._domain)
        self._seeded = False
        self._elapsed: int | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Starts an episode; a seed starts the random streams anew, too."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            simulator, influence = self.np_random.spawn(2)
            self._simulator.seed([simulator])
            self._generator = influence
            self._seeded = True
        if hasattr(self._influence, "reset"):
            self._influence.reset()
        self._elapsed = 0
        return self._simulator.reset()[0, 0].astype(np.float32), self._info()

    def step(self, action: int | np.ndarray):
        """One step; `info["influence_sources"]` are the u_t that acted."""
        _check_going_on(self._elapsed)
        action = np.array(_action("action", action, self._domain, self._available))
        sources = self._sources()
        step = self._simulator.step(action[None, None], sources[None, None])
        self._elapsed += 1
        truncated = self._elapsed == self._domain.horizon
        if truncated:
            self._elapsed = None
        observation, reward = step.observations[0, 0].astype(np.float32), float(step.rewards[0, 0])
        return observation, reward, False, truncated, {"influence_sources": sources, **self._info()}

    def render(self) -> np.ndarray | None:
        return _picture(self._domain, self._simulator) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._simulator.close()

    def _info(self) -> dict[str, np.ndarray]:
        available = available_actions(self._domain, self._simulator)
        self._available = None if available is None else available[0, 0].copy()
        return _mask(self._available)

    def _sources(self) -> np.ndarray:
        """[U] uint8 that `influence` gives; where it fails its generator is what it was before."""
        size, classes, _ = self._domain.influence
        before = self._generator.bit_generator.state
        try:
            given = self._influence(self._simulator.local_states()[0, 0], self._generator)
            sources = np.array(given, object)  # of any nesting
            if sources.shape != (size,) or not all(source in range(classes) for source in sources):
                shown = given.tolist() if isinstance(given, np.ndarray) else given
                raise ValueError(f"influence: {shown} are not {size} sources with classes 0 to {classes - 1}")
        except BaseException:
            self._generator.bit_generator.state = before
            raise
        return sources.astype(np.uint8)

    def _uniform(self, local_state: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return generator.integers(self._domain.influence.classes, size=self._domain.influence.sources)
