"""One agent's policy on its own, in files that programs without this package can load.

All forms have the same interface, float32 throughout, for B situations at once:

| policy       | inputs                              | outputs                                  |
|--------------|-------------------------------------|------------------------------------------|
| recurrent    | `observation` [B, O], `memory` [B, H] | `logits` [B, actions], `next_memory` [B, H] |
| feed-forward | `observation` [B, O]                | `logits` [B, actions]                    |

Of continuous actions there are `mean` and `standard_deviation` [B, C] in the place of logits. The logits are of all
actions, whether available or not. The critic is left out: it is of use in learning only.
"""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dials_mpi.extras import extra
from dials_mpi.learning.parameters import LOG_DEVIATION
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.settings import NetworkSettings

FORMATS = {"torchscript": ".pt", "onnx": ".onnx"}
"""What a policy can be written as, and how such files end."""
_ONNX_OPSET = 17
_ONNX_IR = 8  # that of the opset's time, for runtimes older than the onnx package that writes


class PolicyModule(torch.nn.Module):
    """π_i of one agent, from torch's own layers.

    Args:
        policy: of any number of agents.
        row: the agent's.
        settings: the policy was made with.
    """

    def __init__(self, policy: Policy, row: int, settings: NetworkSettings):
        super().__init__()
        parameters = {name: torch.from_numpy(array) for name, array in policy.network.arrays_of(row).items()}
        self.gru = None
        if settings.recurrent_size:
            size = settings.recurrent_size
            self.gru = torch.nn.GRUCell(len(parameters["gru.input"]), size)
            bias_hidden = torch.cat([torch.zeros(2 * size), parameters["gru.bias_new"][0]])
            _copy(self.gru.weight_ih, parameters["gru.input"].T)
            _copy(self.gru.weight_hh, parameters["gru.hidden"].T)
            _copy(self.gru.bias_ih, parameters["gru.bias"][0])
            _copy(self.gru.bias_hh, bias_hidden)
        activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[settings.activation]
        layers = []
        for i in range(len(settings.hidden_sizes) + 1):
            weight, bias = parameters[f"layer{i}.weight"], parameters[f"layer{i}.bias"][0]
            if i == len(settings.hidden_sizes):
                outputs = policy.actions.outputs
                weight, bias = weight[:, :outputs], bias[:outputs]  # the value stands behind them
            layers += [activation()] if i else []
            layers.append(torch.nn.Linear(*weight.shape))
            _copy(layers[-1].weight, weight.T)
            _copy(layers[-1].bias, bias)
        self.layers = torch.nn.Sequential(*layers)
        self.deviation = None
        if LOG_DEVIATION in parameters:
            self.deviation = torch.nn.Parameter(parameters[LOG_DEVIATION].exp())
        self.requires_grad_(False)

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("observation", "memory") if self.gru else ("observation",)

    @property
    def output_names(self) -> tuple[str, ...]:
        distribution = ("logits",) if self.deviation is None else ("mean", "standard_deviation")
        return (*distribution, "next_memory") if self.gru else distribution

    def initial_inputs(self, copies: int = 1) -> tuple[Tensor, ...]:
        """Zeros of the shapes of the inputs: an episode starts with such a memory."""
        sizes = [self.gru.input_size, self.gru.hidden_size] if self.gru else [self.layers[0].in_features]
        return tuple(torch.zeros(copies, size) for size in sizes)

    def forward(self, observation: Tensor, memory: Tensor | None = None):
        """See the table above."""
        outputs = self.outputs(observation, memory)
        return outputs if len(outputs) > 1 else outputs[0]

    def outputs(self, observation: Tensor, memory: Tensor | None = None) -> tuple[Tensor, ...]:
        """Of the names `output_names`."""
        features = observation if self.gru is None else self.gru(observation, memory)
        head = self.layers(features)
        distribution = (head,) if self.deviation is None else (head, self.deviation.expand_as(head))
        return (*distribution, features) if self.gru else distribution


def _copy(into: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        into.copy_(values)


def to_bytes(module: PolicyModule, form: str) -> bytes:
    """The content of a file.

    Args:
        form: one of `FORMATS`.

    Raises:
        MissingExtraError: the package that it needs is not installed.
    """
    check_format(form)
    return {"torchscript": _torchscript, "onnx": _onnx}[form](module)


def check_format(form: str) -> None:
    """Raises MissingExtraError if the package that a form needs is not installed."""
    if form == "onnx":
        with extra("export", "--format onnx", ", or take torchscript"):
            import onnx  # noqa: F401


def _torchscript(module: PolicyModule) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather be asked for torch.export
        torch.jit.save(torch.jit.trace(module, module.initial_inputs(2)), buffer)
    return buffer.getvalue()


def _onnx(module: PolicyModule) -> bytes:
    """Written by hand: torch's own exporter needs more packages, takes seconds and notes where it ran in the file."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants = [], []

    def constant(name: str, array) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(operator: str, inputs: Sequence[str], output: str, **attributes) -> str:
        # The outputs of a GRU are all its states, which nobody needs here, and the last one.
        outputs = ["", output] if operator == "GRU" else [output]
        nodes.append(helper.make_node(operator, inputs, outputs, name=output, **attributes))
        return output

    features = "observation"
    if module.gru:
        time = constant("time_axis", np.array([0], np.int64))
        weights = [constant(name, _onnx_gates(getattr(module.gru, name))[None]) for name in ("weight_ih", "weight_hh")]
        bias = np.concatenate([_onnx_gates(module.gru.bias_ih), _onnx_gates(module.gru.bias_hh)])[None]
        sequence = node("Unsqueeze", [features, time], "sequence")
        before = node("Unsqueeze", ["memory", time], "memory_before")
        after = node(
            "GRU",
            [sequence, *weights, constant("bias", bias), "", before],
            "memory_after",
            hidden_size=module.gru.hidden_size,
            linear_before_reset=1,
        )
        features = node("Squeeze", [after, time], "next_memory")
    head = module.output_names[0]
    for i, layer in enumerate(module.layers):
        name = head if i == len(module.layers) - 1 else f"layer{i}"
        if isinstance(layer, torch.nn.Linear):
            weight, bias = constant(f"weight{i}", layer.weight.numpy()), constant(f"bias{i}", layer.bias.numpy())
            features = node("Gemm", [features, weight, bias], name, transB=1)
        else:
            features = node(type(layer).__name__.replace("ReLU", "Relu"), [features], name)
    if module.deviation is not None:
        shape = node("Shape", [head], "shape_of_mean")
        node("Expand", [constant("deviation", module.deviation.numpy()), shape], "standard_deviation")

    inputs = module.initial_inputs()

    def described(names: Sequence[str], tensors: Sequence[Tensor]):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", tensor.shape[1]])
            for name, tensor in zip(names, tensors, strict=True)
        ]

    outputs = described(module.output_names, module.outputs(*inputs))
    graph = helper.make_graph(nodes, "policy", described(module.input_names, inputs), outputs, constants)
    model = helper.make_model(
        graph, producer_name="dials_mpi", ir_version=_ONNX_IR, opset_imports=[helper.make_opsetid("", _ONNX_OPSET)]
    )
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _onnx_gates(parameter: Tensor) -> np.ndarray:
    """torch has reset, update, new; ONNX has update, reset, new."""
    reset, update, new = parameter.numpy().reshape(3, -1, *parameter.shape[1:])
    return np.concatenate([update, reset, new])
