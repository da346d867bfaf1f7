"""Names and shapes of the parameters of one agent's network. Imports no torch, so that rank 0 can ask early."""

from collections.abc import Sequence

LOG_DEVIATION = "log_deviation"
"""Of continuous actions, logarithms of the standard deviations: what stands behind the network in a policy's row."""


def parameter_shapes(
    input_size: int, recurrent_size: int, hidden_sizes: Sequence[int], output_size: int
) -> dict[str, tuple[int, int]]:
    """Of [GRU →] hidden layers → one linear head, in the order of an agent's row; sizes as of `StackedNetwork`."""
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
    return shapes


def policy_shapes(domain, settings) -> dict[str, tuple[int, int]]:
    """Of an agent's policy in a domain; `settings` is the `policy:` section of the configuration."""
    network = parameter_shapes(
        domain.observation_size,
        settings.recurrent_size,
        settings.hidden_sizes,
        (domain.action_size or domain.n_actions) + 1,
    )
    return network | ({LOG_DEVIATION: (1, domain.action_size)} if domain.action_size else {})


def predictor_outputs(sources: int, classes: int) -> int:
    """Width of an AIP's head: a logit for each of several binary sources, else one for each class of a source.

    A single binary source is a categorical over two classes: with one output column the matrix library takes another
    path for one agent than for several, and rounds differently.
    """
    return sources if classes == 2 and sources > 1 else sources * classes
