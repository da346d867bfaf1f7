"""Acting in a simulator, and what the learner is given of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.networks import as_features
from dials_mpi.learning.policy import Policy, policy_of_all
from dials_mpi.learning.settings import PPOSettings
from dials_mpi.simulators.actions import available_actions
from dials_mpi.simulators.interface import Domain, GlobalSimulator, Step
from dials_mpi.simulators.values import all_finite, check_available, check_finite


class SteppedByActions(Protocol):
    """What `Actor` acts in: a `GlobalSimulator` or an `InfluenceAugmentedSimulator`."""

    def reset(self) -> np.ndarray: ...

    def step(self, actions: np.ndarray) -> Step: ...

    def available_actions(self) -> np.ndarray: ...


@dataclass
class Rollout:
    """T steps of A agents in B copies. The agent axis leads, so an agent's share is one contiguous block."""

    observations: Tensor
    """[A, T, B, O] float32, o_t before the action."""
    actions: Tensor
    """[A, T, B] int64; continuous ones [A, T, B, C] float32, as sampled, before they are clipped to their range."""
    log_probabilities: Tensor
    """[A, T, B] float32, log π(a_t | h_t) of the policy that acted."""
    values: Tensor
    """[A, T, B] float32, V(h_t)."""
    next_values: Tensor
    """[A, T, B] float32, V(h_{t+1}); at the end of an episode that of its last observation, for truncation."""
    rewards: Tensor
    """[A, T, B] float32, unscaled."""
    states: Tensor
    """[A, T / L, B, H] float32, the policy's memory before every L-th step (L: sequence length); H = 0 without one."""
    available: Tensor | None = None
    """[A, T, B, actions] bool, those that the agent had; None in domains that mask none."""
    over: Tensor | None = None
    """[A, T + 1, B] bool, whose episode was over before each step and after the last; None in domains whose episodes
    all last until the horizon. Where a new episode begins, an entry still tells of the one before."""

    @classmethod
    def of_domain(
        cls,
        domain: Domain,
        n_agents: int,
        settings: PPOSettings,
        state_size: int,
        device: torch.device | str = "cpu",
    ) -> "Rollout":
        """`empty`, with what the domain needs."""
        masked = domain.n_actions if domain.masks_actions else 0
        sizes = domain.observation_size, state_size
        ends = domain.absorbing_reward is not None
        return cls.empty(n_agents, settings, *sizes, device, domain.action_size, masked, ends)

    @classmethod
    def empty(
        cls,
        n_agents: int,
        settings: PPOSettings,
        observation_size: int,
        state_size: int,
        device: torch.device | str = "cpu",
        action_size: int = 0,
        masked: int = 0,
        ends_early: bool = False,
    ) -> "Rollout":
        """Arrays to be filled in, with T, B and L from the settings and H = `state_size`.

        Args:
            action_size: C of continuous actions; 0: they are discrete.
            masked: number of actions that are masked; 0: they are not.
            ends_early: whether an agent's episode may be over before the horizon.
        """
        length, copies = settings.rollout_length, settings.copies

        def floats(*shape):
            return torch.zeros(n_agents, *shape, device=device)

        return cls(
            observations=floats(length, copies, observation_size),
            actions=floats(length, copies, action_size) if action_size else floats(length, copies).long(),
            log_probabilities=floats(length, copies),
            values=floats(length, copies),
            next_values=floats(length, copies),
            rewards=floats(length, copies),
            states=floats(length // settings.sequence_length, copies, state_size),
            available=floats(length, copies, masked).bool() if masked else None,
            over=floats(length + 1, copies).bool() if ends_early else None,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields of a rollout on the CPU by name, as numpy arrays that share memory with them."""
        return {name: tensor.numpy() for name, tensor in self._tensors().items()}

    def to(self, device: torch.device | str) -> "Rollout":
        """The same on another device; itself if it is there already."""
        return Rollout(**{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class Actor:
    """Lets A policies act in B copies of a simulator, episode after episode.

    All copies start and end their episodes together, so that a wiped memory and the bootstrap at the horizon concern
    whole time steps, not single copies.

    Args:
        policy: of the same A agents as the simulator.
        simulator: stepped by actions [A, B] or [A, B, C].
        copies: B.
        domain: of the simulator.
        clock: `clock(phase)` is a context manager for the phases `act` and `simulate`.
    """

    def __init__(self, policy: Policy, simulator: SteppedByActions, copies: int, domain: Domain, clock):
        self._policy = policy
        self._simulator = simulator
        self._copies = copies
        self._domain = domain
        self._clock = clock

    def start(self, generators: Sequence[np.random.Generator]) -> None:
        """Begins a segment with a new episode. The simulator has been seeded.

        Args:
            generators: one stream per agent, for its actions.
        """
        self._noise = self._policy.noise(generators, self._copies)
        self._new_episode()

    @property
    def elapsed(self) -> int:
        """Steps since the current episode began."""
        return self._elapsed

    @torch.no_grad()
    def collect(self, into: Rollout, sequence_length: int) -> None:
        """Takes T steps and fills `into`, going on where the last call stopped.

        Raises:
            FloatingPointError: an observation or a reward is not finite, or an agent has no action.
        """
        length, first_step = into.rewards.shape[1], self._elapsed
        outputs = into.rewards.new_empty(*into.rewards.shape, self._policy.actions.outputs)
        ends = []
        if into.over is not None:
            into.over[:, 0] = torch.from_numpy(self._over)
        for t in range(length):
            with self._clock("act"):
                into.observations[:, t] = torch.from_numpy(self._observations)
                available = None
                if into.available is not None:
                    available = into.available[:, t]
                    available[:] = torch.from_numpy(self._available)
                if t % sequence_length == 0 and self._state is not None:
                    into.states[:, t // sequence_length] = self._state
                outputs[:, t], into.values[:, t], self._state = self._policy.step(into.observations[:, t], self._state)
                into.actions[:, t] = self._policy.distribution(outputs[:, t], available).sample(self._noise)
                actions = self._policy.actions.executed(into.actions[:, t]).cpu().numpy()
            with self._clock("simulate"):
                step = self._simulator.step(actions)
                into.rewards[:, t] = torch.from_numpy(step.rewards)
                if into.over is not None:
                    self._over[:] = False if step.terminated is None else step.terminated
                    into.over[:, t + 1] = torch.from_numpy(self._over)
                self._elapsed += 1
                self._look(step.observations)
            if self._elapsed == self._domain.horizon:
                ends.append((t, self._value_now()))
                with self._clock("simulate"):
                    if not all_finite(self._observations):  # `into` has no place for them
                        self._check_finite(into, first_step, t + 1)
                    self._new_episode()
        with self._clock("simulate"):
            # A sum is the quickest way to see whether all are finite; it may also be too large itself.
            met_with = into.observations, into.rewards, torch.from_numpy(self._observations)
            if not all(values.sum().isfinite() for values in met_with):
                self._check_finite(into, first_step, length)
        with self._clock("act"):
            into.next_values[:, :-1] = into.values[:, 1:]
            into.next_values[:, -1] = self._value_now()
            for t, value in ends:
                into.next_values[:, t] = value
            distribution = self._policy.distribution(outputs, into.available)
            into.log_probabilities[:] = distribution.log_probability(into.actions)

    def _check_finite(self, rollout: Rollout, first_step: int, length: int) -> None:
        """Names what is not finite of `length` steps of a rollout, and of the observations after them."""
        kept = rollout.observations[:, :length].cpu().numpy()
        steps = (first_step + np.arange(length)) % self._domain.horizon
        check_finite(
            self._domain,
            self._kind,
            self._policy.agents,
            observation=(np.concatenate([kept, self._observations[:, None]], axis=1), [*steps - 1, self._elapsed - 1]),
            reward=(rollout.rewards[:, :length].cpu().numpy(), steps),
        )

    @property
    def _kind(self) -> str:
        return "GlobalSimulator" if isinstance(self._simulator, GlobalSimulator) else "LocalSimulator"

    def _new_episode(self) -> None:
        self._elapsed = 0
        self._over = np.zeros((len(self._policy.agents), self._copies), bool)
        self._look(self._simulator.reset())
        self._state = self._policy.initial_state(self._copies)

    def _look(self, observations: np.ndarray) -> None:
        """At what a reset or a step has come to."""
        self._observations = observations
        self._available = available_actions(self._domain, self._simulator)
        if self._available is not None:
            now, copies = [self._elapsed - 1], range(self._copies)
            check_available(self._domain, self._kind, self._policy.agents, copies, self._available[:, None], now)

    def _value_now(self) -> Tensor:
        return self._policy.step(as_features(self._observations, self._policy.device), self._state)[1]


class JointActor(Protocol):
    """Acts for all N agents at once: all that collection, evaluation, `evaluate` and the tools know of a method."""

    def start(self, copies: int, generators: Sequence[np.random.Generator] | None) -> None:
        """Before an episode in B copies.

        Args:
            copies: B.
            generators: a stream for each agent, for its actions; None: nothing is drawn, and every agent takes its most
                probable action.
        """

    def act(self, observations: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
        """Actions [N, B], or [N, B, C] float32, for observations [N, B, O]; called once per step.

        Args:
            available: [N, B, actions] bool, those that may be taken; None: all.
        """


class Player:
    """The `JointActor` of policies that act each for itself."""

    def __init__(self, policy: Policy):
        self._policy = policy

    def start(self, copies: int, generators: Sequence[np.random.Generator] | None) -> None:
        """As of `JointActor`; memories are wiped."""
        self._noise = None if generators is None else self._policy.noise(generators, copies)
        self._state = self._policy.initial_state(copies)

    def act(self, observations: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
        """As of `JointActor`."""
        policy = self._policy
        outputs, _, self._state = policy.step(as_features(observations, policy.device), self._state)
        may = None if available is None else torch.from_numpy(available).to(policy.device)
        distribution = policy.distribution(outputs, may)
        chosen = distribution.mode() if self._noise is None else distribution.sample(self._noise)
        return policy.actions.executed(chosen).cpu().numpy()


def independent_players(configuration, domain: Domain, rows: Mapping[str, np.ndarray]) -> Player:
    """The `JointActor` of methods whose owners publish a `policy` for each agent, with the section of that name."""
    return Player(policy_of_all(configuration.policy, domain, rows["policy"]))
