"""What actions are drawn from: all that depends on what an action is, is here."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dials_mpi.simulators.noise import NoiseBuffer, gumbel

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

    @staticmethod
    def noise(generators: Sequence[np.random.Generator], copies: int, n_actions: int) -> NoiseBuffer:
        """What `sample` takes, one stream per agent."""
        return NoiseBuffer(generators, (copies, n_actions), gumbel)

    def sample(self, noise: NoiseBuffer) -> Tensor:
        """[A, B] int64 by the Gumbel-max trick, each agent's from its own stream; for logits [A, B, actions]."""
        return (self._logits + torch.from_numpy(noise.next()).to(self._logits.device)).argmax(dim=-1)

    def log_probability(self, actions: Tensor) -> Tensor:
        """[...] of actions [...]."""
        return self._logarithms.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        return -(self._logarithms.exp() * self._logarithms).sum(dim=-1)

    @cached_property
    def _logarithms(self) -> Tensor:
        return torch.log_softmax(self._logits, dim=-1)
