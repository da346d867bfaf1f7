"""Returns on the global simulator, of learned policies and of hand-coded controllers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dials_mpi.config import Configuration
from dials_mpi.errors import UserError
from dials_mpi.learning.episodes import JointEpisodes, Outcomes, batches_of, episode_by_steps
from dials_mpi.learning.policy import Policy, policy_of_all
from dials_mpi.learning.rollout import JointActor
from dials_mpi.runs.policies import policies_of_run
from dials_mpi.simulators.actions import random_actions
from dials_mpi.simulators.interface import Domain
from dials_mpi.stepwise import finish
from dials_mpi.streams import streams


@dataclass(frozen=True)
class Returns:
    """Undiscounted returns of E episodes."""

    episodes: np.ndarray
    """[N, E] float32, return of every agent in every episode."""
    ends: np.ndarray | None = None
    """[N, E] bool, whose episode was over before the horizon; None in domains where all last until then."""

    @property
    def ended_early(self) -> float | None:
        """Share of the episodes in which some agent's was over early, a collision for example."""
        return None if self.ends is None else float(self.ends.any(axis=0).mean())

    @property
    def mean_return(self) -> float:
        """Over agents and episodes, the paper's figure."""
        return float(self.episodes.mean(dtype=np.float64))

    @property
    def standard_error(self) -> float:
        """Of `mean_return`, over episodes."""
        per_episode = self.episodes.mean(axis=0, dtype=np.float64)
        return float(per_episode.std(ddof=1) / np.sqrt(len(per_episode)))

    @property
    def per_agent(self) -> np.ndarray:
        """[N] means over episodes. A mean over agents hides single ones that are stuck."""
        return self.episodes.mean(axis=1, dtype=np.float64)

    def as_record(self) -> dict:
        ended = {} if self.ended_early is None else {"ended_early": round(self.ended_early, 6)}
        return {
            "mean_return": round(self.mean_return, 6),
            "standard_error": round(self.standard_error, 6),
            "episodes": self.episodes.shape[1],
            "min_agent": round(float(self.per_agent.min()), 6),
            "max_agent": round(float(self.per_agent.max()), 6),
            **ended,
            "per_agent": {"mean_return": [round(float(value), 6) for value in self.per_agent]},
        }

    def __str__(self) -> str:
        spread = f"agents {self.per_agent.min():.2f} to {self.per_agent.max():.2f}"
        ended = "" if self.ended_early is None else f", {100 * self.ended_early:.0f} % of the episodes ended early"
        return f"{self.mean_return:.2f} ± {self.standard_error:.2f} ({spread}{ended})"


def joined(parts: Sequence[Outcomes]) -> Returns:
    """Of batches of episodes, in their order."""
    returns, ends = zip(*parts, strict=True)
    return Returns(np.concatenate(returns, axis=1), None if ends[0] is None else np.concatenate(ends, axis=1))


def evaluate_actor(
    domain: Domain,
    actor: JointActor,
    episodes: int,
    seed: int,
    step: int,
    copies: int | None = None,
    tick: Callable[[], None] = lambda: None,
    argmax: bool = False,
) -> Returns:
    """Plays `episodes` episodes in which a method acts for all N agents.

    Args:
        argmax: as of `JointEpisodes`.
        step: training steps so far; every evaluation has streams of its own.
        copies: how many episodes are played side by side; None: all.
        tick: called after every joint step.
    """
    with JointEpisodes(domain, actor, seed, step, tick, argmax=argmax) as joint:
        return joined([joint.play(*numbered) for numbered in enumerate(batches_of(episodes, copies or episodes))])


def evaluate_controller(
    domain: Domain,
    controller: str | None,
    episodes: int,
    seed: int,
    copies: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Returns:
    """Plays `episodes` episodes with a hand-coded controller, or uniformly random actions for None.

    Args:
        copies, tick: as of `evaluate_actor`.
    """
    generator = np.random.default_rng(streams(seed, "evaluate/actions", [0])[0])
    parts = []
    for members in batches_of(episodes, copies or episodes):
        shape = (domain.n_agents, len(members))

        def act(_, available, shape=shape):
            return None if controller else random_actions(domain, generator, shape, available)

        parts.append(play_controller(domain, controller, members, seed, act, tick))
    return joined(parts)


def play_controller(
    domain: Domain,
    controller: str | None,
    members: range,
    seed: int,
    act: Callable[[np.ndarray, np.ndarray | None], np.ndarray | None] = lambda observations, available: None,
    tick: Callable[[], None] = lambda: None,
) -> Outcomes:
    """The episodes `members` of `evaluate_controller`, side by side."""
    with domain.global_simulator(len(members), controller) as simulator:
        simulator.seed(streams(seed, "evaluate/simulator", members))
        return finish(episode_by_steps(domain, simulator, act, tick))


def load_rows(run: Path, best: bool = False, checkpoint: int | None = None) -> tuple[Path, int, dict[str, np.ndarray]]:
    """What all N agents of a run act by: where it was found, its training step, and rows [N, P] float32 by name.

    Args:
        best, checkpoint: which ones, as of `policies_of_run`.

    Raises:
        UserError: nothing there, or it is damaged.
    """
    file, step, rows = policies_of_run(run, best, checkpoint)
    for parameters in rows.values() if checkpoint is None else ():  # those have been checked, and hold other arrays
        if parameters.dtype != np.float32 or not np.isfinite(parameters).all():
            raise UserError(f"{file}: damaged: parameters that are no finite float32 numbers")
    return file, step, rows


def joint_actor(file: Path, configuration: Configuration, domain: Domain, rows: Mapping[str, np.ndarray]) -> JointActor:
    """Of the configuration's method.

    Args:
        file: where the rows are from.
        rows: of all N agents.

    Raises:
        UserError: rows of another number of agents or of other networks.
    """
    try:
        return configuration.method.joint_actor(configuration, domain, rows)
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: {error}") from error


def load_policy(
    run: Path, configuration: Configuration, domain: Domain, best: bool = False, checkpoint: int | None = None
) -> tuple[Path, int, Policy]:
    """The policies of a run whose agents act each for itself; as `load_rows`.

    Args:
        configuration, domain: of the run.

    Raises:
        UserError: no policies there, or of other agents or another network.
    """
    file, step, rows = load_rows(run, best, checkpoint)
    try:
        return file, step, policy_of_all(configuration.policy, domain, rows["policy"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: {error}") from error


def load_actor(run: Path, configuration: Configuration, domain: Domain, copies: int, seed: int) -> JointActor:
    """What a run published at its last evaluation, ready to act in `copies` copies of the GS.

    Args:
        configuration, domain: of the run.
        seed: of the actions.

    Raises:
        UserError: as of `load_rows` and `joint_actor`.
    """
    file, _, rows = load_rows(run)
    actor = joint_actor(file, configuration, domain, rows)
    actor.start(copies, streams(seed, "evaluate/actions", range(configuration.agents)))
    return actor
