"""What actions are drawn from: all that depends on what an action is, is here.

`Discrete` and `Continuous` say what actions are like and what of a policy's network they need, `Categorical` and
`Gaussian` are π(a | h) in given situations.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.parameters import LOG_DEVIATION
from dials_mpi.learning.settings import PolicySettings
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.noise import NoiseBuffer, gumbel, normal

_NEVER = torch.finfo(torch.float32).min
"""Logit of an action that is not available: its probability is 0, and finite is what is multiplied with that."""


class Categorical:
    """Probabilities softmax(logits) of the actions that are available.

    Args:
        logits: [..., actions] float32.
        available: bool of the same shape; None: all are.
    """

    def __init__(self, logits: Tensor, available: Tensor | None = None):
        self._logits = logits if available is None else logits.masked_fill(~available, _NEVER)

    def sample(self, noise: NoiseBuffer) -> Tensor:
        """[A, B] int64 by the Gumbel-max trick, each agent's from its own stream; for logits [A, B, actions]."""
        return (self._logits + torch.from_numpy(noise.next()).to(self._logits.device)).argmax(dim=-1)

    def mode(self) -> Tensor:
        """[A, B] int64, the most probable action; the first of several."""
        return self._logits.argmax(dim=-1)

    def log_probability(self, actions: Tensor) -> Tensor:
        """[...] of actions [...]."""
        return self._logarithms.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        return -(self._logarithms.exp() * self._logarithms).sum(dim=-1)

    @cached_property
    def _logarithms(self) -> Tensor:
        return torch.log_softmax(self._logits, dim=-1)


class Gaussian:
    """Independent normal distributions of the C components of an action.

    Args:
        mean: [A, ..., C] float32.
        log_deviation: [A, 1, C], an agent's logarithms of standard deviations, the same in all situations.
    """

    def __init__(self, mean: Tensor, log_deviation: Tensor):
        self._mean = mean
        # In float64, so that the gradient is added up in it: the order depends on how many agents are stacked.
        wide = log_deviation.double().view(len(mean), *[1] * (mean.dim() - 2), mean.shape[-1])
        self._log_deviation = wide.expand(mean.shape).float()

    @torch.no_grad()
    def sample(self, noise: NoiseBuffer) -> Tensor:
        """[A, B, C] float32, each agent's from its own stream; for means [A, B, C]."""
        return self._mean + self._log_deviation.exp() * torch.from_numpy(noise.next()).to(self._mean.device)

    def mode(self) -> Tensor:
        """[A, B, C] float32, the mean."""
        return self._mean

    def log_probability(self, actions: Tensor) -> Tensor:
        """[A, ...] logarithms of the density at actions [A, ..., C]."""
        deviations = (actions - self._mean) * (-self._log_deviation).exp()
        return -(0.5 * deviations.square() + self._log_deviation + 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """[A, ...] differential entropy in nats."""
        return (self._log_deviation + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)


class Discrete:
    """Actions 0 … number-1.

    Attributes:
        outputs: of the network, for π: a logit for each action.
    """

    def __init__(self, number: int):
        self.outputs = number

    def biases(self, settings: PolicySettings) -> Sequence[float]:
        """First values of `outputs`, nearly."""
        return settings.initial_logits or [0.0] * self.outputs

    def parameters(self, settings: PolicySettings) -> dict[str, Sequence[float]]:
        """Names and first values of those of an agent's parameters that no layer of the network has."""
        return {}

    def noise(self, generators: Sequence[np.random.Generator], copies: int) -> NoiseBuffer:
        """What samples in B copies take, one stream per agent."""
        return NoiseBuffer(generators, (copies, self.outputs), gumbel)

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor], available: Tensor | None) -> Categorical:
        """π; `parameters` [A, 1, …] are those of `parameters`, `available` is as of `Categorical`."""
        return Categorical(outputs, available)

    def executed(self, actions: Tensor) -> Tensor:
        """What a simulator is given for samples."""
        return actions


class Continuous:
    """Actions of `size` numbers between `low` and `high`. As `Discrete`; the network's outputs are the means."""

    def __init__(self, size: int, low: float, high: float):
        self.outputs = size
        self._range = low, high

    def biases(self, settings: PolicySettings) -> Sequence[float]:
        return [sum(self._range) / 2] * self.outputs

    def parameters(self, settings: PolicySettings) -> dict[str, Sequence[float]]:
        return {LOG_DEVIATION: [settings.initial_log_deviation] * self.outputs}

    def noise(self, generators: Sequence[np.random.Generator], copies: int) -> NoiseBuffer:
        return NoiseBuffer(generators, (copies, self.outputs), normal)

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor], available: Tensor | None) -> Gaussian:
        return Gaussian(outputs, parameters[LOG_DEVIATION])

    def executed(self, actions: Tensor) -> Tensor:
        return actions.clamp(*self._range)


def actions_of(domain: Domain) -> Discrete | Continuous:
    """What actions of a domain are like."""
    return Continuous(domain.action_size, *domain.action_range) if domain.action_size else Discrete(domain.n_actions)
