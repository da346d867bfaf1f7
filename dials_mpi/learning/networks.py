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
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


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
        parameters: [A, P] float32 to be used as they are; None: zeros.
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
        parameters: Tensor | None = None,
    ):
        self.n_agents = len(seeds)
        self.recurrent_size = recurrent_size
        self._activation = ACTIVATIONS[activation]
        self._layers = len(hidden_sizes) + 1
        shapes = {}
        width = input_size
        if recurrent_size:
            shapes["gru.input"] = (width, 3 * recurrent_size)
            shapes["gru.hidden"] = (recurrent_size, 3 * recurrent_size)
            shapes["gru.bias"] = (1, 3 * recurrent_size)
            shapes["gru.bias_new"] = (1, recurrent_size)
            width = recurrent_size
        for i, size in enumerate((*hidden_sizes, output_size)):
            shapes[f"layer{i}.weight"] = (width, size)
            shapes[f"layer{i}.bias"] = (1, size)
            width = size
        self.shapes: dict[str, tuple[int, int]] = shapes
        """Name and shape of each parameter of one agent, in the order of its row."""
        size = sum(math.prod(shape) for shape in shapes.values())
        self.parameters = torch.zeros(self.n_agents, size) if parameters is None else parameters
        """[A, P] float32. Written in place by optimisers, exchanges and checkpoints."""
        self.gradients = torch.zeros(self.n_agents, size)
        """[A, P] float32, of the last `backward`."""
        self._views = {name: view.detach().requires_grad_() for name, view in self._by_name(self.parameters).items()}
        self._gradient_views = list(self._by_name(self.gradients).values())
        self._initialise(seeds, head_gains or [(output_size, 1.0)])

    def arrays_of(self, row: int) -> dict[str, np.ndarray]:
        """One agent's parameters by name, in their shapes, float32."""
        return {name: view[row].detach().numpy().copy() for name, view in self._views.items()}

    def initial_state(self, n_sequences: int) -> Tensor | None:
        """The memory at the start of an episode: zeros [A, S, H], or None for a feed-forward network."""
        return torch.zeros(self.n_agents, n_sequences, self.recurrent_size) if self.recurrent_size else None

    @torch.no_grad()
    def step(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One time step without gradients: features [A, S, input] → outputs [A, S, output], next state."""
        if self.recurrent_size:
            w = self._views
            gates = torch.baddbmm(w["gru.bias"], features, w["gru.input"])
            features = state = _gru_cell(gates, state, w["gru.hidden"], w["gru.bias_new"])
        return self._feed_forward(features), state

    def unroll(self, features: Tensor, state: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """Whole sequences, with gradients: features [A, L, S, input] → outputs [A, L, S, output].

        Args:
            features: float32.
            state: [A, S, H] memory before the first step (no gradient), None for a feed-forward network.
            keep: [L, S] float32, 0 where an episode starts and the memory is wiped before the step, else 1; the same
                for all agents. None: no episode starts within the sequences.
        """
        a, length, s, width = features.shape
        features = features.reshape(a, length * s, width)
        if self.recurrent_size:
            w = self._views
            gates = _Linear.apply(features, w["gru.input"], w["gru.bias"]).view(a, length, s, -1)
            features = _GRU.apply(gates, state, w["gru.hidden"], w["gru.bias_new"], keep)
            features = features.view(a, length * s, self.recurrent_size)
        return self._feed_forward(features).view(a, length, s, -1)

    def backward(self, loss: Tensor) -> None:
        """Fills `gradients` with those of `loss`, a scalar made from what `unroll` returned."""
        torch._foreach_copy_(self._gradient_views, torch.autograd.grad(loss, list(self._views.values())))

    def _feed_forward(self, features: Tensor) -> Tensor:
        for i in range(self._layers):
            if i:
                features = self._activation(features)
            features = _Linear.apply(features, self._views[f"layer{i}.weight"], self._views[f"layer{i}.bias"])
        return features

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [A, *shape] of the parts of a flat tensor [A, P]."""
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.view(self.n_agents, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    @torch.no_grad()
    def _initialise(self, seeds: Sequence[int | None], head_gains: Sequence[tuple[int, float]]) -> None:
        """Orthogonal weights, zero biases."""
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
            head = self._views[f"layer{self._layers - 1}.weight"][agent]
            widths, gains = zip(*head_gains, strict=True)
            for part, gain in zip(head.split(widths, dim=1), gains, strict=True):
                orthogonal(part, gain)


def _gru_cell(gates: Tensor, state: Tensor, weight: Tensor, bias_new: Tensor) -> Tensor:
    """Next state [A, S, H] of a GRU (Cho et al., 2014; the variant of cuDNN and torch.nn.GRU).

    Args:
        gates: [A, S, 3H] the input's share of the reset, update and new gates, biases included.
        state: [A, S, H].
        weight: [A, H, 3H].
        bias_new: [A, 1, H] the state's share of the bias of the new gate.
    """
    h = state.shape[-1]
    hidden = torch.bmm(state, weight)
    reset, update = torch.sigmoid(gates[..., : 2 * h] + hidden[..., : 2 * h]).split(h, dim=-1)
    new = torch.tanh(torch.addcmul(gates[..., 2 * h :], reset, hidden[..., 2 * h :] + bias_new))
    return torch.lerp(new, state, update)


class _Linear(torch.autograd.Function):
    """Features [A, M, in] times weight [A, in, out] plus bias [A, 1, out], for every agent.

    Like `baddbmm`, but the bias gets its gradient from a matrix product, too: the order in which `sum` adds depends on
    how many agents are stacked.
    """

    @staticmethod
    def forward(ctx, features, weight, bias):
        ctx.save_for_backward(features, weight)
        return torch.baddbmm(bias, features, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        features, weight = ctx.saved_tensors
        grad_features = torch.bmm(grad, weight.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return grad_features, torch.bmm(features.transpose(1, 2), grad), _sum_of_rows(grad)


def _sum_of_rows(rows: Tensor) -> Tensor:
    """[A, M, K] → [A, 1, K]."""
    return torch.bmm(rows.new_ones(rows.shape[0], 1, rows.shape[1]), rows)


class _GRU(torch.autograd.Function):
    """A stacked GRU over a sequence, with its backward pass written out.

    Autograd would record a dozen small operations per time step. Here the backward recursion takes three: what the
    gates pass on is the state's gradient times coefficients that are known for the whole sequence in advance.
    """

    @staticmethod
    def forward(ctx, gates, state, weight, bias_new, keep):
        a, length, s, _ = gates.shape
        h = weight.shape[1]
        before = gates.new_empty(length, a, s, h)  # state entering each step, after the wipe
        hidden = gates.new_empty(length, a, s, 3 * h)  # the state's share of the gates
        sigmoids = gates.new_empty(length, a, s, 2 * h)
        new = gates.new_empty(length, a, s, h)
        after = gates.new_empty(a, length, s, h)
        wiped = _steps_with_wipe(keep)
        gates_rz, gates_new = gates[..., : 2 * h].unbind(1), gates[..., 2 * h :].unbind(1)
        steps = zip(before, hidden, sigmoids, new, after.unbind(1), gates_rz, gates_new, strict=True)
        for t, (before_t, hidden_t, sigmoids_t, new_t, after_t, rz_t, n_t) in enumerate(steps):
            if t in wiped:
                torch.mul(state, keep[t, :, None], out=before_t)
            else:
                before_t.copy_(state)
            torch.bmm(before_t, weight, out=hidden_t)
            hidden_t[..., 2 * h :] += bias_new
            torch.add(rz_t, hidden_t[..., : 2 * h], out=sigmoids_t).sigmoid_()
            torch.addcmul(n_t, sigmoids_t[..., :h], hidden_t[..., 2 * h :], out=new_t).tanh_()
            torch.lerp(new_t, before_t, sigmoids_t[..., h:], out=after_t)
            state = after_t
        ctx.save_for_backward(before, hidden, sigmoids, new, weight, keep)
        return after

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_after):
        before, hidden, sigmoids, new, weight, keep = ctx.saved_tensors
        length, a, s, h = before.shape
        reset, update = sigmoids[..., :h], sigmoids[..., h:]
        # d(pre-activation) / d(state after the step), for the reset, update and new gates. The new gate's last factor,
        # `reset`, belongs to the state's share of it only.
        coefficients = before.new_empty(length, a, s, 3, h)
        d_new = (1 - update) * (1 - new * new)
        torch.mul(d_new * hidden[..., 2 * h :], reset * (1 - reset), out=coefficients[..., 0, :])
        torch.mul(before - new, update * (1 - update), out=coefficients[..., 1, :])
        torch.mul(d_new, reset, out=coefficients[..., 2, :])
        grad_state = before.new_empty(length, a, s, h)
        grad_hidden = before.new_empty(length, a, s, 3, h)
        transposed = weight.transpose(1, 2)
        wiped = _steps_with_wipe(keep)
        grads, updates = grad_after.unbind(1), update.unbind(0)
        grad_state[-1].copy_(grads[-1])
        for t in range(length - 1, -1, -1):
            torch.mul(grad_state[t].unsqueeze(-2), coefficients[t], out=grad_hidden[t])
            if t == 0:
                break
            if t in wiped:
                flow = torch.addcmul(torch.bmm(grad_hidden[t].view(a, s, 3 * h), transposed), grad_state[t], updates[t])
                torch.addcmul(grads[t - 1], flow, keep[t, :, None], out=grad_state[t - 1])
            else:
                torch.addcmul(grads[t - 1], grad_state[t], updates[t], out=grad_state[t - 1])
                grad_state[t - 1].baddbmm_(grad_hidden[t].view(a, s, 3 * h), transposed)
        grad_hidden = grad_hidden.transpose(0, 1)
        grad_gates = grad_hidden.clone()
        torch.mul(grad_state, d_new, out=grad_gates[..., 2, :].transpose(0, 1))
        flat_before = before.transpose(0, 1).reshape(a, length * s, h)
        flat_hidden = grad_hidden.reshape(a, length * s, 3 * h)
        grad_weight = torch.bmm(flat_before.transpose(1, 2), flat_hidden)
        grad_bias_new = _sum_of_rows(flat_hidden[..., 2 * h :])
        return grad_gates.view(a, length, s, 3 * h), None, grad_weight, grad_bias_new, None


def _steps_with_wipe(keep: Tensor | None) -> frozenset[int]:
    """Steps at which some sequence's memory is wiped."""
    return frozenset() if keep is None else frozenset((keep == 0).any(dim=1).nonzero().ravel().tolist())


def mean_per_agent(x: Tensor) -> Tensor:
    """[A, …] → [A] means over all other axes.

    Added in float64: how many agents are stacked decides in which order floats are added, and here rounding hides it.
    """
    return x.flatten(1).mean(dim=1, dtype=torch.float64).float()


def as_features(observations: np.ndarray) -> Tensor:
    """Observations or local states of any dtype as a network's float32 input."""
    return torch.from_numpy(observations).float()
