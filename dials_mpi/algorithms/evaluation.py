"""Returns on the global simulator, of learned policies and of hand-coded controllers."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dials_mpi.config import Configuration
from dials_mpi.errors import UserError
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.rollout import Player
from dials_mpi.runs.policies import load_policies
from dials_mpi.simulators.interface import Domain
from dials_mpi.streams import streams


@dataclass(frozen=True)
class Returns:
    """Undiscounted returns of E episodes."""

    episodes: np.ndarray
    """[N, E] float32, return of every agent in every episode."""

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
        return {
            "mean_return": round(self.mean_return, 6),
            "standard_error": round(self.standard_error, 6),
            "episodes": self.episodes.shape[1],
            "min_agent": round(float(self.per_agent.min()), 6),
            "max_agent": round(float(self.per_agent.max()), 6),
            "per_agent": {"mean_return": [round(float(value), 6) for value in self.per_agent]},
        }

    def __str__(self) -> str:
        spread = f"agents {self.per_agent.min():.2f} to {self.per_agent.max():.2f}"
        return f"{self.mean_return:.2f} ± {self.standard_error:.2f} ({spread})"


def evaluate_policy(domain: Domain, policy: Policy, episodes: int, seed: int, step: int) -> Returns:
    """Plays `episodes` episodes side by side with actions sampled from the policies of all N agents.

    Args:
        step: training steps so far; every evaluation has streams of its own.
    """
    player = Player(policy, episodes, streams(seed, "evaluate/actions", range(domain.n_agents), step))
    with domain.global_simulator(episodes) as simulator:
        simulator.seed(streams(seed, "evaluate/simulator", range(episodes), step))
        player.reset()
        return _play(domain, simulator, player.act)


def evaluate_controller(domain: Domain, controller: str | None, episodes: int, seed: int) -> Returns:
    """Plays `episodes` episodes with a hand-coded controller, or uniformly random actions for None."""
    generator = np.random.default_rng(streams(seed, "evaluate/actions", [0])[0])
    shape = (domain.n_agents, episodes)
    with domain.global_simulator(episodes, controller) as simulator:
        simulator.seed(streams(seed, "evaluate/simulator", range(episodes)))
        return _play(
            domain, simulator, lambda _: None if controller else generator.integers(domain.n_actions, size=shape)
        )


def load_player(run: Path, configuration: Configuration, domain: Domain, copies: int, seed: int) -> Player:
    """The policies that a run directory holds, ready to act in `copies` copies of the GS.

    Args:
        configuration, domain: of the run.
        seed: of the actions.

    Raises:
        UserError: no policies there, or of other agents or another network.
    """
    c, file = configuration, run / "policies.npz"
    policy = Policy(range(c.agents), domain.observation_size, domain.n_actions, c.policy, c.seed)
    try:
        _, parameters = load_policies(file)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: no policies to be read ({str(error) or type(error).__name__})") from error
    if parameters.shape != tuple(policy.parameters.shape):
        raise UserError(
            f"{file}: parameters of shape {parameters.shape}, but the run's configuration makes "
            f"{tuple(policy.parameters.shape)}"
        )
    if parameters.dtype != np.float32 or not np.isfinite(parameters).all():
        raise UserError(f"{file}: damaged: parameters that are no finite float32 numbers")
    policy.parameters.copy_(torch.from_numpy(parameters))
    player = Player(policy, copies, streams(seed, "evaluate/actions", range(c.agents)))
    player.reset()
    return player


def _play(domain: Domain, simulator, act) -> Returns:
    observations = simulator.reset()
    total = 0.0
    for _ in range(domain.horizon):
        observations, rewards = simulator.step(act(observations))
        total = total + rewards
    return Returns(total)
