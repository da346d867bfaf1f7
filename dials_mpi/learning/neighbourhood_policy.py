"""Policies and critics of agents that see their neighbourhood, and how such policies act together."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.distributions import Categorical
from dials_mpi.learning.networks import StackedNetwork
from dials_mpi.learning.settings import PolicySettings
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.neighbourhoods import neighbourhoods
from dials_mpi.simulators.noise import NoiseBuffer, gumbel
from dials_mpi.streams import torch_seed


def neighbourhood_policy(
    agents: Sequence[int],
    inputs: int,
    n_actions: int,
    settings: PolicySettings,
    seed: int | None,
    device: torch.device | str = "cpu",
    parameters: Tensor | None = None,
) -> StackedNetwork:
    """π_i(a | o_j, j ∈ N_i): logits of A agents; arguments as of `Policy`, `inputs` K · O."""
    return StackedNetwork(
        inputs,
        0,
        settings.hidden_sizes,
        n_actions,
        settings.activation,
        _seeds(agents, settings, seed, "policy/initialise"),
        head_gains=[(n_actions, 0.01)],
        head_biases=settings.initial_logits or [0.0] * n_actions,
        device=device,
        parameters=parameters,
    )


def neighbourhood_critic(
    agents: Sequence[int], inputs: int, settings: PolicySettings, seed: int, device: torch.device | str = "cpu"
) -> StackedNetwork:
    """V_i(o_j, j ∈ N_i^k) of A agents, the first of two outputs, from a network as large as the policy's.

    The second output is nothing: with a single column the matrix library takes another path for one agent than for
    several, and rounds differently.
    """
    seeds = _seeds(agents, settings, seed, "critic/initialise")
    return StackedNetwork(inputs, 0, settings.hidden_sizes, 2, settings.activation, seeds, device=device)


def _seeds(agents: Sequence[int], settings: PolicySettings, seed: int | None, purpose: str) -> list[int | None]:
    return [None if seed is None else torch_seed(seed, purpose, 0 if settings.shared else agent) for agent in agents]


def side_by_side(gathered: np.ndarray) -> Tensor:
    """What the places of a neighbourhood see, [A, K, M, O] → [A, M, K · O] float32."""
    return torch.from_numpy(gathered).transpose(1, 2).flatten(2)


class NeighbourhoodPlayers:
    """The `JointActor` of neighbourhood policies.

    Args:
        configuration: of a method with a section whose `policy_radius` says how far agents see.
        domain: with a graph.
        rows: `policy` [N, P].

    Raises:
        ValueError: rows of another number of agents or of another network.
    """

    def __init__(self, configuration, domain: Domain, rows: Mapping[str, np.ndarray]):
        self._ids = neighbourhoods(domain.graph, configuration.dppo.policy_radius, domain.n_agents)
        self._n_actions = domain.n_actions
        inputs = self._ids.shape[1] * domain.observation_size
        settings, everyone = configuration.policy, range(domain.n_agents)
        expected = neighbourhood_policy(everyone[:1], inputs, domain.n_actions, settings, None).parameters.shape[1]
        if rows["policy"].shape != (domain.n_agents, expected):
            raise ValueError(
                f"parameters of shape {rows['policy'].shape}, but the run's configuration makes "
                f"{(domain.n_agents, expected)}"
            )
        parameters = torch.from_numpy(rows["policy"])
        self._network = neighbourhood_policy(everyone, inputs, domain.n_actions, settings, None, parameters=parameters)

    def start(self, copies: int, generators: Sequence[np.random.Generator] | None) -> None:
        """As of `JointActor`."""
        self._noise = None if generators is None else NoiseBuffer(generators, (copies, self._n_actions), gumbel)

    def act(self, observations: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
        """As of `JointActor`."""
        seen = np.zeros((*self._ids.shape, *observations.shape[1:]), np.float32)
        here = self._ids >= 0
        seen[here] = observations[self._ids[here]]
        logits, _ = self._network.step(side_by_side(seen), None)
        distribution = Categorical(logits)
        return (distribution.mode() if self._noise is None else distribution.sample(self._noise)).numpy()
