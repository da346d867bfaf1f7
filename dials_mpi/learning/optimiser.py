"""Adam on the rows of a `StackedNetwork`, with a gradient limit for each agent.

Not `torch.optim.Adam`: its first step imports torch's compiler, 75 MiB and 1.5 s on every rank, for what is a few
operations on one flat tensor; and its gradient clipping would mix the agents.
"""

import math

import torch

from dials_mpi.learning.networks import StackedNetwork

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-5


class Adam:
    """Adam (Kingma and Ba, 2015) with betas 0.9 and 0.999, ε 1e-5 added to the root of the corrected second moment.

    Attributes:
        first_moment, second_moment: [A, P] float32.
        steps: [A] int64, number of steps taken; the same for all agents of a block.
    """

    def __init__(self, network: StackedNetwork):
        self._network = network
        self.first_moment = torch.zeros_like(network.parameters)
        self.second_moment = torch.zeros_like(network.parameters)
        self.steps = torch.zeros(network.n_agents, dtype=torch.int64)

    @torch.no_grad()
    def step(self, learning_rate: float, max_gradient_norm: float | None = None) -> torch.Tensor:
        """Applies `network.gradients`, each agent's scaled down to `max_gradient_norm` if it is longer.

        Returns:
            [A] the gradients' norms before that.
        """
        gradients = self._network.gradients
        norms = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).float()
        if max_gradient_norm is not None:
            gradients.mul_((max_gradient_norm / (norms + 1e-6)).clamp_(max=1.0).unsqueeze(1))
        self.steps += 1
        steps = int(self.steps[0])
        self.first_moment.lerp_(gradients, 1 - _BETA1)
        self.second_moment.mul_(_BETA2).addcmul_(gradients, gradients, value=1 - _BETA2)
        # The bias correction of the second moment goes into the scale and ε: one pass less over all parameters.
        correction = math.sqrt(1 - _BETA2**steps)
        denominator = self.second_moment.sqrt().add_(_EPSILON * correction)
        scale = -learning_rate * correction / (1 - _BETA1**steps)
        self._network.parameters.addcdiv_(self.first_moment, denominator, value=scale)
        return norms
