"""Whole episodes of all agents on the global simulator, in batches."""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

from dials_mpi.learning.rollout import JointActor, SteppedByActions
from dials_mpi.simulators.actions import available_actions
from dials_mpi.simulators.interface import Domain, GlobalSimulator
from dials_mpi.simulators.values import all_finite, check_available, check_finite
from dials_mpi.stepwise import finish
from dials_mpi.streams import streams


def batches_of(episodes: int, copies: int) -> list[range]:
    """Numbers of the episodes in each batch of at most `copies` that are played side by side."""
    return [range(first, min(first + copies, episodes)) for first in range(0, episodes, copies)]


class Outcomes(NamedTuple):
    """What B episodes came to."""

    returns: np.ndarray
    """[N, B] float32, undiscounted, of every agent; what is paid after an early end included."""
    ended_early: np.ndarray | None
    """[N, B] bool, whether `Step.terminated` was true; None in domains whose episodes all last until the horizon."""


class JointEpisodes:
    """Plays batches of episodes in which a method acts for all N agents.

    A batch depends on the actor, the seed, the training step, its number and the numbers of its episodes alone: any
    rank can play any batch, in any order, and comes to the same bits.

    Args:
        actor: of the method.
        seed: the run's seed.
        step: training steps so far.
        tick: called after every joint step.
        purpose: what the random streams are named after, `evaluate` or `train`.
        argmax: whether agents take their most probable actions instead of drawing them.
    """

    def __init__(
        self,
        domain: Domain,
        actor: JointActor,
        seed: int,
        step: int,
        tick: Callable[[], None] = lambda: None,
        purpose: str = "evaluate",
        argmax: bool = False,
    ):
        self.domain = domain
        self._actor = actor
        self._seed = seed
        self._step = step
        self._tick = tick
        self._purpose = purpose
        self._argmax = argmax
        self._simulator: GlobalSimulator | None = None
        self._copies = 0

    def __enter__(self) -> "JointEpisodes":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the GS, which is kept from batch to batch."""
        if self._simulator:
            self._simulator.close()
        self._simulator = None

    def play(
        self,
        batch: int,
        members: range,
        watched: Callable[[GlobalSimulator], SteppedByActions] = lambda simulator: simulator,
    ) -> Outcomes:
        """One episode in each of B copies of the GS.

        Args:
            batch: its number.
            members: numbers of its B episodes.
            watched: what steps in the GS's place and looks at it meanwhile.
        """
        return finish(self.play_by_steps(batch, members, watched))

    def play_by_steps(
        self,
        batch: int,
        members: range,
        watched: Callable[[GlobalSimulator], SteppedByActions] = lambda simulator: simulator,
    ) -> Generator[None, None, Outcomes]:
        """`play`, which yields after each joint step."""
        n_agents, copies = self.domain.n_agents, len(members)
        if self._simulator is None or copies != self._copies:
            self.close()
            self._simulator, self._copies = self.domain.global_simulator(copies), copies
        self._simulator.seed(streams(self._seed, f"{self._purpose}/simulator", members, self._step))
        acting = range(batch * n_agents, (batch + 1) * n_agents)
        generators = None if self._argmax else streams(self._seed, f"{self._purpose}/actions", acting, self._step)
        self._actor.start(copies, generators)
        return (yield from episode_by_steps(self.domain, watched(self._simulator), self._actor.act, self._tick))


def episode_by_steps(
    domain: Domain,
    simulator: SteppedByActions,
    act: Callable[[np.ndarray, np.ndarray | None], np.ndarray | None],
    tick: Callable[[], None],
) -> Generator[None, None, Outcomes]:
    """One episode in each copy of a GS that has been seeded; yields after each step.

    Args:
        act: as of `JointActor`; None where the GS has a controller.

    Raises:
        FloatingPointError: an observation or a reward is not finite, or an agent has no action.
    """
    everyone = range(domain.n_agents)
    observations = simulator.reset()
    check_finite(domain, "GlobalSimulator", everyone, observation=(observations[:, None], [-1]))
    total = 0.0
    for t in range(domain.horizon):
        available = available_actions(domain, simulator)
        if available is not None:
            copies = range(available.shape[1])
            check_available(domain, "GlobalSimulator", everyone, copies, available[:, None], [t - 1])
        step = simulator.step(act(observations, available))
        observations, rewards = step.observations, step.rewards
        if not (all_finite(observations) and all_finite(rewards)):
            met_with = {"observation": (observations[:, None], [t]), "reward": (rewards[:, None], [t])}
            check_finite(domain, "GlobalSimulator", everyone, **met_with)
        total = total + rewards
        tick()
        yield
    if domain.absorbing_reward is None:
        return Outcomes(total, None)
    return Outcomes(total, np.zeros(total.shape, bool) if step.terminated is None else step.terminated.copy())
