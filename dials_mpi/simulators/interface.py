"""What a domain offers to the rest of the package: the extension point.

| symbol | meaning                                                |
|--------|--------------------------------------------------------|
| N      | agents in the system                                   |
| A      | agents that one simulator holds (A = N in the GS)      |
| B      | copies of the simulation that are stepped at once      |
| O      | size of one agent's observation                        |
| D      | size of one agent's local state, what the AIP sees     |
| U, C   | influence sources per agent, classes per source        |
| C      | where it is about actions: numbers of a continuous one |

The agent axis always comes first. Episodes have a fixed length, `Domain.horizon`; all copies start and end together.
The horizon is a time limit (truncation): the learner bootstraps from the last observation. An agent whose episode is
over before (termination, `Step.terminated`) is absorbed: until the horizon it is stepped with the others, but sees the
same observation at every step and gets the same reward, `Domain.absorbing_reward`. So returns hold what an early end
costs or saves, and a learner can leave these steps out: what follows one that terminates is worth c / (1 - γ).

Time is counted so that `step` number t takes the local state x_t and the action a_t to x_{t+1} under the influence
sources u_t, and an AIP predicts u_t from the local states up to x_t (paper, section 3.2). The paper's
action-local-state history l_t = (x_0, a_0, …, a_{t-1}, x_t) holds the agent's actions, too. AIPs here do not see them,
unless `predictor.sees_actions` is set: without it, what a local state does not show of the last action is lost to them.

A domain is plugged in by name (`registry.BUILT_IN`) or by its class, `--env package.module:ClassName`. Write a
subclass of `Domain` and one of each simulator; `conformance.check_domain` tells whether they keep what is said here. It
replays as well: a local simulator that is given the actions, the influence sources and the draws of a global one must
live the same episode, or nearly so (`Domain.replay_tolerance`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from dials_mpi.settings import Settings

if TYPE_CHECKING:
    import networkx


class DomainSettings(Settings):
    """Base of a domain's own settings, the `domain:` section of a configuration. Unknown keys are refused."""


class Influence(NamedTuple):
    """How the rest of the system acts on one agent's region (paper, section 3.1).

    Actions are no part of it: an AIP that is to see them (`predictor.sees_actions`) gets them from this package.
    """

    sources: int
    """U, number of influence sources u_i."""
    classes: int
    """C, values that each source takes: 0 … C-1. Two classes make a Bernoulli source."""
    local_state_size: int
    """D, what the AIP sees at each step: the part of x_t that d-separates u_t from the rest, as bits.

    Of the history l_t, which has the actions a_0 … a_{t-1} as well, these are the local states alone.
    """


class Step(NamedTuple):
    """Outcome of one step. The arrays are the caller's until the next `step` or `reset` of the same simulator."""

    observations: np.ndarray
    """[A, B, O], any real dtype."""
    rewards: np.ndarray
    """[A, B] float32."""
    terminated: np.ndarray | None = None
    """[A, B] bool, whose episode is over: with this step or before it, until the next `reset`. None: nobody's."""


class Simulator(ABC):
    """Steps A agents in B copies. Usable as a context manager, which closes it.

    A process holds several simulators but uses them one after the other: between a `reset` and the last `step` that
    follows it no other simulator of the process is stepped (one libsumo simulation per process needs this).
    """

    @abstractmethod
    def seed(self, generators: Sequence[np.random.Generator]) -> None:
        """Hands over the random streams that everything from the next `reset` on is drawn from.

        A `GlobalSimulator` takes one generator per copy (B), a `LocalSimulator` one per agent (A), in order.
        """

    @abstractmethod
    def reset(self) -> np.ndarray:
        """Starts a new episode in all copies; returns observations [A, B, O]. Nothing of the last episode is left."""

    def available_actions(self) -> np.ndarray:
        """[A, B, n_actions] bool, which actions each agent may take now, at least one; of absorbed agents, too.

        Asked for after `reset` and after each `step`, and only where the domain says that it `masks_actions`.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks available_actions, but its domain masks_actions")

    def close(self) -> None:  # noqa: B027 - most simulators have nothing to give back
        """Gives back processes, sockets and files. Harmless when called twice."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class GlobalSimulator(Simulator):
    """The GS: all N agents of the system, in B copies that do not know of each other."""

    @abstractmethod
    def step(self, actions: np.ndarray | None) -> Step:
        """Advances all copies by one step.

        Args:
            actions: [N, B] integers in 0 … n_actions-1, available ones; [N, B, C] float32 within `action_range` where
                actions are continuous; None where a hand-coded controller acts.
        """

    def actions(self) -> np.ndarray:
        """[N, B] integers or [N, B, C] float32, the actions of the last `step`, whoever chose them.

        For replays of hand-coded controllers.

        Simulators without controllers need not have it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell the actions of its controllers")

    def local_states(self) -> np.ndarray:
        """[N, B, D] uint8, x_t as it is now. Domains without influence need not have it."""
        raise NotImplementedError(f"{type(self).__name__} has no local states: its domain declares no influence")

    def influence_sources(self) -> np.ndarray:
        """[N, B, U] uint8, the u_t that acted in the last `step`. Domains without influence need not have it."""
        raise NotImplementedError(f"{type(self).__name__} has no influence sources: its domain declares no influence")

    def draws(self) -> np.ndarray | None:
        """[N, B, …], what the last `reset` or `step` drew at random inside each agent's region; None: nothing.

        For replays: `LocalSimulator.take_draws` is handed them, in whatever form the domain's two simulators agree on.
        """
        return None


class LocalSimulator(Simulator):
    """The LS, T̂ᵢ, R̂ᵢ and Ôᵢ: the regions of A agents, each alone, in B copies."""

    @abstractmethod
    def step(self, actions: np.ndarray, influence_sources: np.ndarray) -> Step:
        """Advances all regions by one step under the given influence.

        Args:
            actions: [A, B] integers, or [A, B, C] float32, as of `GlobalSimulator`.
            influence_sources: [A, B, U] uint8 classes, the u_t of this step.
        """

    @abstractmethod
    def local_states(self) -> np.ndarray:
        """[A, B, D] uint8, x_t as it is now."""

    def take_draws(self, draws: np.ndarray) -> None:
        """Hands over `draws` [A, B, …] of the GS, which the next `reset` or `step` uses in place of its own.

        For replays; simulators whose GS hands over none need not have it.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks take_draws, but its GlobalSimulator has draws")


class Domain(ABC):
    """Sizes, names and factories of one domain with N agents.

    Attributes that an instance must have are annotated below; `settings` is an instance of the class's `Settings`.
    """

    name: ClassVar[str]
    """Short name for run directories and files."""
    Settings: ClassVar[type[DomainSettings]] = DomainSettings
    """The domain's own settings; a subclass of `DomainSettings`."""
    controllers: ClassVar[tuple[str, ...]] = ()
    """Names of the hand-coded joint controllers that `global_simulator` knows."""

    observation_range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    """Bounds of all entries of an observation, for people who use the simulators with other learners."""

    masks_actions: ClassVar[bool] = False
    """Whether agents may at times not take some of the actions. Simulators then have `available_actions`; nobody
    chooses others, and they need not be ready for that."""

    absorbing_reward: float | None = None
    """c, what an agent whose episode was over before a step gets at that step, and at every one until the horizon.

    None: all episodes last until the horizon, and steps have no `terminated`.

    To a learner for which the horizon is a truncation the absorbing state is worth c / (1 - γ), exactly."""

    replay_tolerance: ClassVar[float] = 0.0
    """How far the LS may be from the GS whose actions, influence sources and draws it is given; 0: it lives the same.

    Measured as Σ |x - y| / Σ max(|x|, |y|), x in the GS and y in the LS, of an agent's local states, its observations
    and its rewards in an episode: 0 where all are equal, 1 where nothing is; of bits, the share that differs of those
    set in either. A domain whose LS approximates declares what `conformance.check_domain` finds for its worst agent and
    some room, but less than an LS comes to that ignores u, or is told of it a step late."""

    kinds: Sequence[int] | None = None
    """A number for each agent, the same for agents of one kind; None: all are alike.

    Sizes are those of the largest kind: observations of others are padded with zeros, and actions that they lack are
    never available (`masks_actions`). Agents of different kinds cannot share a policy."""

    n_agents: int
    n_actions: int = 0
    """Discrete actions 0 … n_actions-1; 0 where they are continuous."""
    action_size: int = 0
    """C, numbers of which a continuous action is made; 0 where actions are discrete."""
    action_range: tuple[float, float] = (-1.0, 1.0)
    """Bounds of all numbers of a continuous action. Policies begin in the middle, with deviations that a setting gives
    (policy.initial_log_deviation): choose units in which that is no small part of the range."""
    observation_size: int
    horizon: int
    """Steps per episode."""
    scratch: Path | None = None
    """Folder for files that simulators make on the way, road networks for example; shared by all ranks of a run, which
    sets it and empties it in the end. None outside a run: make a temporary one."""
    influence: Influence | None
    """None for a domain whose agents are not influenced, or where it is not modelled: no DIALS then."""

    def __init__(self, n_agents: int, settings: DomainSettings):
        """Raises ValueError for a number of agents that the domain cannot have, naming the nearest it can."""
        self.n_agents = n_agents
        self.settings = settings

    @cached_property
    def observation_names(self) -> Sequence[str]:
        """O different names, one for each entry of an observation; a domain may set its own, as of `action_names`."""
        return [f"observation_{i}" for i in range(self.observation_size)]

    @cached_property
    def action_names(self) -> Sequence[str]:
        """A name for each action, or for each number of a continuous one."""
        return [f"action_{i}" for i in range(self.action_size or self.n_actions)]

    @cached_property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns in which the agents stand, numbered row by row; where a domain does not say, one row."""
        return 1, self.n_agents

    @cached_property
    def graph(self) -> "networkx.Graph | None":
        """Who is near whom: an undirected networkx graph over the agents 0 … N-1; None for a domain that has none.

        Made when it is asked for, and networkx imported with it, which takes 20 MiB of each process that does.
        """
        return None

    @abstractmethod
    def global_simulator(self, copies: int, controller: str | None = None) -> GlobalSimulator:
        """The GS in `copies` copies, its agents driven by `step`'s actions or by one of `controllers`."""

    @abstractmethod
    def local_simulator(self, agents: Sequence[int], copies: int) -> LocalSimulator:
        """The LS of the regions of `agents` (ids in 0 … N-1), each in `copies` copies."""

    def draw(self, simulator: Simulator, axes, copy: int = 0) -> tuple[Any, str]:
        """Draws a simulator of this domain as it is now. Domains need not have it.

        Args:
            simulator: global or local; of the latter the first agent's region is drawn.
            axes: matplotlib's, empty.
            copy: which one.

        Returns:
            What a colour bar is made of: matplotlib's ScalarMappable, and its label.
        """
        raise NotImplementedError(f"domain {self.name} cannot be drawn: it has no `draw`")
