"""Actor and critic of A agents: one stacked network with two outputs."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.distributions import Categorical, Continuous, Discrete, Gaussian, actions_of
from dials_mpi.learning.networks import StackedNetwork
from dials_mpi.learning.parameters import policy_shapes
from dials_mpi.learning.settings import PolicySettings
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.noise import NoiseBuffer
from dials_mpi.streams import torch_seed


class Policy:
    """π_i(a | h) and V_i(h) of the agents `agents`; memories are the state of the recurrent layer.

    Args:
        agents: agent ids, whose streams initialise the parameters; if the policy is shared, agent 0's does all.
        observation_size: O.
        actions: what they are like, as of `actions_of`; a number: so many discrete ones.
        settings: the `policy:` section of the configuration.
        seed: the run's seed; None: the parameters are not initialised.
        device: where it computes.
        parameters: [A, P] float32 to be used as they are; None: memory of their own.
    """

    def __init__(
        self,
        agents: Sequence[int],
        observation_size: int,
        actions: int | Discrete | Continuous,
        settings: PolicySettings,
        seed: int | None,
        device: torch.device | str = "cpu",
        parameters: Tensor | None = None,
    ):
        self.agents = agents
        self.actions = actions = Discrete(actions) if isinstance(actions, int) else actions
        origins = [0] * len(agents) if settings.shared else agents
        # A small gain makes the first policies nearly the same in every state; the critic's head keeps the usual one.
        self.network = StackedNetwork(
            observation_size,
            settings.recurrent_size,
            settings.hidden_sizes,
            actions.outputs + 1,
            settings.activation,
            [None if seed is None else torch_seed(seed, "policy/initialise", agent) for agent in origins],
            head_gains=[(actions.outputs, 0.01), (1, 1.0)],
            head_biases=[*actions.biases(settings), 0.0],
            device=device,
            parameters=parameters,
            gradient_precision=settings.gradient_precision,
            more=actions.parameters(settings),
        )
        self._more = {name: self.network.parameter(name) for name in actions.parameters(settings)}

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
        return self.actions.noise(generators, copies)

    def distribution(self, outputs: Tensor, available: Tensor | None = None) -> Categorical | Gaussian:
        """Of the actions, for the first of what `step` and `unroll` return; `available` as of `Categorical`."""
        return self.actions.distribution(outputs, self._more, available)

    def step(self, observations: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """One step without gradients; observations [A, B, O] float32.

        Returns:
            Logits [A, B, actions] or, of continuous actions, means [A, B, C]; values [A, B]; and the next memory.
        """
        outputs, state = self.network.step(observations, state)
        return outputs[..., :-1], outputs[..., -1], state

    def unroll(self, observations: Tensor, state: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits or means [A, L, S, …] and values [A, L, S], with gradients; see `StackedNetwork.unroll`."""
        outputs = self.network.unroll(observations, state, keep)
        return outputs[..., :-1], outputs[..., -1]


def policy_of_all(settings: PolicySettings, domain: Domain, parameters: np.ndarray) -> Policy:
    """The policies of all N agents from their rows [N, P] float32, which they share memory with.

    Raises:
        ValueError: rows of another number of agents or of another network.
    """
    c, n = settings, domain.n_agents
    expected = n, sum(map(math.prod, policy_shapes(domain, c).values()))
    if parameters.shape != expected:
        raise ValueError(f"parameters of shape {parameters.shape}, but the run's configuration makes {expected}")
    rows = torch.from_numpy(parameters)
    return Policy(range(n), domain.observation_size, actions_of(domain), c, seed=None, parameters=rows)
