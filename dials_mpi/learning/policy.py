"""Actor and critic of A agents: one stacked network with two outputs."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.distributions import Categorical
from dials_mpi.learning.networks import StackedNetwork
from dials_mpi.learning.parameters import parameter_shapes
from dials_mpi.learning.settings import PolicySettings
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.noise import NoiseBuffer
from dials_mpi.streams import torch_seed


class Policy:
    """π_i(a | h) and V_i(h) of the agents `agents`; memories are the state of the recurrent layer.

    Args:
        agents: agent ids, whose streams initialise the parameters; if the policy is shared, agent 0's does all.
        observation_size, n_actions: O and the number of actions of the domain.
        settings: the `policy:` section of the configuration.
        seed: the run's seed; None: the parameters are not initialised.
        device: where it computes.
        parameters: [A, P] float32 to be used as they are; None: memory of their own.
    """

    def __init__(
        self,
        agents: Sequence[int],
        observation_size: int,
        n_actions: int,
        settings: PolicySettings,
        seed: int | None,
        device: torch.device | str = "cpu",
        parameters: Tensor | None = None,
    ):
        self.agents = agents
        self.n_actions = n_actions
        origins = [0] * len(agents) if settings.shared else agents
        # A small gain makes the first policies nearly the same in every state; the critic's head keeps the usual one.
        self.network = StackedNetwork(
            observation_size,
            settings.recurrent_size,
            settings.hidden_sizes,
            n_actions + 1,
            settings.activation,
            [None if seed is None else torch_seed(seed, "policy/initialise", agent) for agent in origins],
            head_gains=[(n_actions, 0.01), (1, 1.0)],
            head_biases=[*(settings.initial_logits or [0.0] * n_actions), 0.0],
            device=device,
            parameters=parameters,
            gradient_precision=settings.gradient_precision,
        )

    @property
    def parameters(self) -> Tensor:
        """[A, P] float32, one row per agent."""
        return self.network.parameters

    @property
    def device(self) -> torch.device:
        return self.network.parameters.device

    def initial_state(self, copies: int) -> Tensor | None:
        return self.network.initial_state(copies)

    def noise(self, generators: Sequence[np.random.Generator], copies: int) -> NoiseBuffer:
        """What sampled actions in B copies take, one stream per agent."""
        return Categorical.noise(generators, copies, self.n_actions)

    def distribution(self, logits: Tensor, available: Tensor | None = None) -> Categorical:
        """Of the actions, for what `step` and `unroll` return; `available` as of `Categorical`."""
        return Categorical(logits, available)

    def step(self, observations: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits [A, B, actions], values [A, B] and next memory, without gradients; observations [A, B, O] float32."""
        outputs, state = self.network.step(observations, state)
        return outputs[..., :-1], outputs[..., -1], state

    def unroll(self, observations: Tensor, state: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [A, L, S, actions] and values [A, L, S], with gradients; see `StackedNetwork.unroll`."""
        outputs = self.network.unroll(observations, state, keep)
        return outputs[..., :-1], outputs[..., -1]


def policy_of_all(settings: PolicySettings, domain: Domain, parameters: np.ndarray) -> Policy:
    """The policies of all N agents from their rows [N, P] float32, which they share memory with.

    Raises:
        ValueError: rows of another number of agents or of another network.
    """
    c, n = settings, domain.n_agents
    shapes = parameter_shapes(domain.observation_size, c.recurrent_size, c.hidden_sizes, domain.n_actions + 1)
    expected = n, sum(map(math.prod, shapes.values()))
    if parameters.shape != expected:
        raise ValueError(f"parameters of shape {parameters.shape}, but the run's configuration makes {expected}")
    rows = torch.from_numpy(parameters)
    return Policy(range(n), domain.observation_size, domain.n_actions, c, seed=None, parameters=rows)
