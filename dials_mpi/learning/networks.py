"""Networks of many agents at once: the parameters of A agents stacked on axis 0, every layer one batched matmul.

All parameters of a network lie in ONE tensor [A, P], and so do their gradients: an agent is a row. That row is what
travels over MPI, what an optimiser updates and what a checkpoint holds, and the norm of a gradient row is the norm of
one agent's gradient. No operation mixes rows, so an agent learns the same alone or stacked with others.

| symbol | meaning                                        |
|--------|------------------------------------------------|
| A      | agents stacked in this network                 |
| L      | time steps of a sequence                       |
| S      | sequences, or copies when acting step by step  |
| H      | width of the recurrent layer                   |
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.learning.parameters import parameter_shapes


class StackedNetwork:
    """[GRU →] hidden layers → one linear head, for A agents.

    Args:
        input_size: features per step.
        recurrent_size: H, width of the GRU; 0 for a feed-forward network.
        hidden_sizes: widths of the fully connected layers between GRU (or input) and head.
        output_size: width of the head.
        activation: `tanh` or `relu`, after each hidden layer.
        seeds: one integer per agent; an agent's initial parameters depend on its own seed alone. With None for one
            they are left as they are.
        head_gains: (width, gain) pairs: parts of the head and the gains of their initial weights. Default: one part
            with gain 1.
        head_biases: initial biases of the head, one per output. Default: zeros.
        device: where it computes. Initial parameters are drawn on the CPU, so they are the same everywhere.
        parameters: [A, P] float32 to be used as they are; None: zeros.
        more: names and initial values of parameters that an agent has and no layer uses; see `parameter`.
        gradient_precision: `float32` or `bfloat16`: what the backward pass's matrix products are rounded to, factors
            and results, but for the biases' gradients. Outputs, parameters and sums are float32 in any case.
    """

    def __init__(
        self,
        input_size: int,
        recurrent_size: int,
        hidden_sizes: Sequence[int],
        output_size: int,
        activation: str,
        seeds: Sequence[int | None],
        head_gains: Sequence[tuple[int, float]] | None = None,
        head_biases: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        parameters: Tensor | None = None,
        gradient_precision: str = "float32",
        more: Mapping[str, Sequence[float]] | None = None,
    ):
        more = more or {}
        self._precision = getattr(torch, gradient_precision)
        self.n_agents = len(seeds)
        self.recurrent_size = recurrent_size
        self._activation, self._differentiable = ACTIVATIONS[activation]
        self._layers = len(hidden_sizes) + 1
        self.shapes: dict[str, tuple[int, int]] = parameter_shapes(
            input_size, recurrent_size, hidden_sizes, output_size
        ) | {name: (1, len(values)) for name, values in more.items()}
        """Name and shape of each parameter of one agent, in the order of its row."""
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.parameters = torch.zeros(self.n_agents, size, device=device) if parameters is None else parameters
        """[A, P] float32. Written in place by optimisers, exchanges and checkpoints."""
        self.gradients = torch.zeros_like(self.parameters)
        """[A, P] float32, of the last `backward`."""
        self._views = {name: view.detach().requires_grad_() for name, view in self._by_name(self.parameters).items()}
        self._gradient_views = list(self._by_name(self.gradients).values())
        self._initialise(seeds, head_gains or [(output_size, 1.0)], head_biases or [0.0] * output_size, more)

    def arrays_of(self, row: int) -> dict[str, np.ndarray]:
        """One agent's parameters by name, in their shapes, float32."""
        return {name: view[row].detach().cpu().numpy().copy() for name, view in self._views.items()}

    def parameter(self, name: str) -> Tensor:
        """[A, *shape] float32, shared with `parameters`, and with a gradient in a loss that `backward` is given."""
        return self._views[name]

    def initial_state(self, n_sequences: int) -> Tensor | None:
        """The memory at the start of an episode: zeros [A, S, H], or None for a feed-forward network."""
        if not self.recurrent_size:
            return None
        return self.parameters.new_zeros(self.n_agents, n_sequences, self.recurrent_size)

    @torch.no_grad()
    def step(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One time step without gradients: features [A, S, input] → outputs [A, S, output], next state."""
        if self.recurrent_size:
            w = self._views
            gates = _linear(features, w["gru.input"], w["gru.bias"])
            features = state = _gru_cell(gates, state, w["gru.hidden"], w["gru.bias_new"])
        return self._feed_forward(features, _linear, self._activation), state

    def unroll(self, features: Tensor, state: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """Whole sequences, with gradients: features [A, L, S, input] → outputs [A, L, S, output].

        Args:
            features: float32.
            state: [A, S, H] memory before the first step (no gradient), None for a feed-forward network.
            keep: [L, S] float32, 0 where an episode starts and the memory is wiped before the step, else 1; the same
                for all agents. None: no episode starts within the sequences.
        """
        a, length, s, _ = features.shape
        if self.recurrent_size:
            weights = (self._views[f"gru.{name}"] for name in ("input", "hidden", "bias", "bias_new"))
            features = _GRU.apply(features.contiguous(), state, *weights, keep, self._precision)

        def linear(*inputs):
            return _Linear.apply(*inputs, self._precision)

        features = self._feed_forward(features.flatten(1, 2), linear, self._differentiable)
        return features.view(a, length, s, -1)

    def backward(self, loss: Tensor) -> None:
        """Fills `gradients` with those of `loss`, a scalar made from what `unroll` returned."""
        torch._foreach_copy_(self._gradient_views, torch.autograd.grad(loss, list(self._views.values())))

    def share_gradients(self, mean: Callable[[np.ndarray], np.ndarray]) -> None:
        """Each agent's becomes that of all; `mean` of rows [A, P] over all agents, [P] float32."""
        self.gradients.copy_(torch.from_numpy(mean(self.gradients.cpu().numpy())))

    def _feed_forward(
        self,
        features: Tensor,
        linear: Callable[[Tensor, Tensor, Tensor], Tensor],
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        for i in range(self._layers):
            if i:
                features = activation(features)
            features = linear(features, self._views[f"layer{i}.weight"], self._views[f"layer{i}.bias"])
        return features

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [A, *shape] of the parts of a flat tensor [A, P]."""
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.view(self.n_agents, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    @torch.no_grad()
    def _initialise(
        self,
        seeds: Sequence[int | None],
        head_gains: Sequence[tuple[int, float]],
        head_biases: Sequence[float],
        more: Mapping[str, Sequence[float]],
    ) -> None:
        """Orthogonal weights, zero biases but for the head's."""
        hidden_gain = torch.nn.init.calculate_gain("relu" if self._activation is torch.relu else "tanh")
        for agent, seed in enumerate(seeds):
            if seed is None:
                continue
            generator = torch.Generator().manual_seed(seed)

            def orthogonal(weight, gain, generator=generator):
                weight.copy_(torch.nn.init.orthogonal_(torch.empty(weight.T.shape), gain, generator=generator).T)

            if self.recurrent_size:
                for name in ("gru.input", "gru.hidden"):
                    for gate in self._views[name][agent].split(self.recurrent_size, dim=1):
                        orthogonal(gate, 1.0)
            for i in range(self._layers - 1):
                orthogonal(self._views[f"layer{i}.weight"][agent], hidden_gain)
            self._views[f"layer{self._layers - 1}.bias"][agent] = torch.tensor(head_biases)
            for name, values in more.items():
                self._views[name][agent] = torch.tensor(values)
            head = self._views[f"layer{self._layers - 1}.weight"][agent]
            widths, gains = zip(*head_gains, strict=True)
            for part, gain in zip(head.split(widths, dim=1), gains, strict=True):
                orthogonal(part, gain)


def _gru_cell(gates: Tensor, state: Tensor, weight: Tensor, bias_new: Tensor) -> Tensor:
    """Next state [A, S, H] of a GRU (Cho et al., 2014; the variant of cuDNN and torch.nn.GRU).

    Args:
        gates: [A, S, 3H] the input's share of the reset, update and new gates, biases included; overwritten.
        state: [A, S, H].
        weight: [A, H, 3H].
        bias_new: [A, 1, H] the state's share of the bias of the new gate.
    """
    h = state.shape[-1]
    hidden_new = torch.baddbmm(bias_new, state, weight[..., 2 * h :])
    gates, new = gates[..., : 2 * h], gates[..., 2 * h :]
    reset, update = gates.baddbmm_(state, weight[..., : 2 * h]).sigmoid_().split(h, dim=-1)
    return torch.lerp(_tanh_(new.addcmul_(reset, hidden_new)), state, update)


_MINUS_ONE = torch.tensor(-1.0)
"""Without an axis, so torch takes it for a number on any device."""


def _tanh_(x: Tensor) -> Tensor:
    """tanh(x) = 2σ(2x) − 1, in place of x and within 2e-7: on a CPU torch's own takes 1.5 to 5 times as long."""
    return torch.add(_MINUS_ONE, x.add_(x).sigmoid_(), alpha=2, out=x)


class _Tanh(torch.autograd.Function):
    """`_tanh_` of the output of a linear layer, which nobody else needs, with gradients."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(_tanh_(x))
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return torch.ops.aten.tanh_backward(grad, *ctx.saved_tensors)


ACTIVATIONS = {"tanh": (_tanh_, _Tanh.apply), "relu": (torch.relu, torch.relu)}
"""Each without and with gradients; they may overwrite what they are given."""


def _linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Features [A, M, in] times weight [A, in, out] plus bias [A, 1, out], for every agent."""
    return torch.baddbmm(bias, features, weight)


class _Linear(torch.autograd.Function):
    """`_linear` with gradients.

    Like those of `baddbmm`, but the bias gets its gradient from a matrix product, too: the order in which `sum` adds
    depends on how many agents are stacked.
    """

    @staticmethod
    def forward(ctx, features, weight, bias, precision):
        ctx.save_for_backward(features, weight)
        ctx.precision = precision
        return _linear(features, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        features, weight = ctx.saved_tensors
        factor = grad.to(ctx.precision)
        grad_features = _product(factor, weight.to(ctx.precision).transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return grad_features, _product(features.transpose(1, 2), factor), _sum_of_rows(grad), None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """[A, M, K] times [A, K, N], multiplied in the precision of the latter: [A, M, N] float32."""
    return torch.bmm(left.to(right.dtype), right).float()


def _sum_of_rows(rows: Tensor) -> Tensor:
    """[A, M, K] → [A, 1, K]."""
    return torch.bmm(rows.new_ones(rows.shape[0], 1, rows.shape[1]), rows)


class _GRU(torch.autograd.Function):
    """A stacked GRU over a sequence of inputs [A, L, S, in] that need no gradient, with its backward pass written out.

    Autograd would record a dozen small operations per time step. Here the backward recursion takes three: what the
    gates pass on is the state's gradient times coefficients that are known for the whole sequence in advance. Every
    array is as long as the sequence, so there are few of them: activations take the place of the gates' inputs, and
    gradients that of their coefficients.
    """

    @staticmethod
    def forward(ctx, inputs, state, input_weight, weight, bias, bias_new, keep, precision):
        a, length, s, _ = inputs.shape
        h = weight.shape[1]
        gates = _linear(inputs.flatten(1, 2), input_weight, bias).view(a, length, s, 3 * h)
        hidden_new = gates.new_empty(a, length, s, h)  # the state's share of the new gate
        states = gates.new_empty(a, length + 1, s, h)
        states[:, 0] = state
        # State entering each step; after a wipe it is not the one that left the step before.
        before = states[:, :-1] if keep is None else gates.new_empty(a, length, s, h)
        wiped = _steps_with_wipe(keep)
        weight_rz, weight_new = weight[..., : 2 * h], weight[..., 2 * h :]
        sequence = (gates[..., : 2 * h], gates[..., :h], gates[..., h : 2 * h], gates[..., 2 * h :], hidden_new, before)
        for t, (rz_t, reset_t, update_t, new_t, hidden_t, before_t, after_t) in enumerate(
            zip(*(x.unbind(1) for x in (*sequence, states[:, 1:])), strict=True)
        ):
            if keep is not None:
                torch.mul(states[:, t], keep[t, :, None], out=before_t) if t in wiped else before_t.copy_(states[:, t])
            rz_t.baddbmm_(before_t, weight_rz).sigmoid_()
            torch.baddbmm(bias_new, before_t, weight_new, out=hidden_t)
            _tanh_(new_t.addcmul_(reset_t, hidden_t))
            torch.lerp(new_t, before_t, update_t, out=after_t)
        ctx.save_for_backward(inputs, gates, hidden_new, before, weight, keep)
        ctx.precision = precision
        return states[:, 1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_after):
        inputs, gates, hidden_new, before, weight, keep = ctx.saved_tensors
        a, length, s, h = before.shape
        reset, update, new = gates.split(h, dim=-1)
        # d(pre-activation) / d(state after the step). In this order the first three are those of the inputs' shares of
        # the new, reset and update gates, the last three those of the state's shares of reset, update and new gates.
        grads = gates.new_empty(a, length, s, 4, h)
        for_new, for_reset, for_update, for_hidden_new = grads.unbind(3)
        tanh_backward, sigmoid_backward = torch.ops.aten.tanh_backward, torch.ops.aten.sigmoid_backward
        tanh_backward.grad_input(1 - update, new, grad_input=for_new)
        sigmoid_backward.grad_input(for_new * hidden_new, reset, grad_input=for_reset)
        sigmoid_backward.grad_input(before - new, update, grad_input=for_update)
        torch.mul(for_new, reset, out=for_hidden_new)
        transposed = weight.to(ctx.precision).transpose(1, 2)
        wiped = _steps_with_wipe(keep)
        hidden = grads.view(a, length, s, 4 * h)[..., h:]
        flow = torch.zeros_like(before[:, 0])
        for t in range(length - 1, -1, -1):
            grad_state = flow.add_(grad_after[:, t])
            grads[:, t].mul_(grad_state.unsqueeze(-2))
            if t == 0:
                break
            flow = grad_state * update[:, t]
            if ctx.precision is torch.float32:
                flow.baddbmm_(hidden[:, t], transposed)
            else:
                flow.add_(torch.bmm(hidden[:, t].to(ctx.precision), transposed))
            if t in wiped:
                flow.mul_(keep[t, :, None])
        flat = grads.view(a, length * s, 4 * h)
        factor = flat.to(ctx.precision)
        by_input = _product(inputs.flatten(1, 2).transpose(1, 2), factor[..., : 3 * h])
        by_state = _product(before.flatten(1, 2).transpose(1, 2), factor[..., h:])
        biases, bias_new = _sum_of_rows(flat).split([3 * h, h], dim=-1)
        return None, None, by_input.roll(-h, -1), by_state, biases.roll(-h, -1), bias_new, None, None


def _steps_with_wipe(keep: Tensor | None) -> frozenset[int]:
    """Steps at which some sequence's memory is wiped."""
    return frozenset() if keep is None else frozenset((keep == 0).any(dim=1).nonzero().ravel().tolist())


def mean_per_agent(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """[A, …] → [A] means over all other axes.

    Added in float64: how many agents are stacked decides in which order floats are added, and here rounding hides it.

    Args:
        counts: bool like `x`, which entries count; None: all. The mean of none is 0.
    """
    if counts is None:
        return x.flatten(1).mean(dim=1, dtype=torch.float64).float()
    total = torch.where(counts, x, 0.0).flatten(1).sum(dim=1, dtype=torch.float64)
    return (total / counts.flatten(1).sum(dim=1).clamp(min=1)).float()


def as_features(observations: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Observations or local states of any dtype as a network's float32 input."""
    return torch.from_numpy(observations).to(device).float()
