"""Agent-stacked networks: the same numbers as torch's own layers, and no agent feels another."""

import pytest
import torch

from dials_mpi.learning.networks import StackedNetwork
from dials_mpi.learning.optimiser import Adam
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.settings import PolicySettings

A, L, S, D, H = 3, 7, 5, 11, 16
PRECISIONS = ("float32", "bfloat16")


def network(seeds, recurrent=H, hidden=(8,), activation="tanh", device="cpu") -> StackedNetwork:
    return StackedNetwork(D, recurrent, hidden, 4, activation, seeds, device=device)


def torch_twin(net: StackedNetwork, agent: int) -> tuple[torch.nn.GRUCell, torch.nn.Sequential]:
    """torch's own layers with the parameters of one agent."""
    row = net.parameters[agent]
    part = dict(zip(net.shapes, row.split([a * b for a, b in net.shapes.values()]), strict=True))
    part = {name: value.view(net.shapes[name]) for name, value in part.items()}
    gru = torch.nn.GRUCell(D, H)
    linear = [torch.nn.Linear(H, 8), torch.nn.Linear(8, 4)]
    with torch.no_grad():
        gru.weight_ih.copy_(part["gru.input"].T)
        gru.weight_hh.copy_(part["gru.hidden"].T)
        gru.bias_ih.copy_(part["gru.bias"][0])
        gru.bias_hh.zero_()
        gru.bias_hh[2 * H :] = part["gru.bias_new"][0]
        for i, layer in enumerate(linear):
            layer.weight.copy_(part[f"layer{i}.weight"].T)
            layer.bias.copy_(part[f"layer{i}.bias"][0])
    return gru, torch.nn.Sequential(linear[0], torch.nn.Tanh(), linear[1])


@pytest.mark.parametrize("wipes", [[], [(0, 1)], [(3, 2), (4, 0), (4, 1), (4, 2), (4, 3), (4, 4)]])
def test_equals_torch_layers_forward_and_backward(wipes):
    torch.manual_seed(0)
    net = network([1, 2, 3])
    net.parameters += 0.1 * torch.randn_like(net.parameters)  # biases, too
    features, state = torch.randn(A, L, S, D), torch.randn(A, S, H)
    keep = torch.ones(L, S)
    for t, sequence in wipes:
        keep[t, sequence] = 0
    outputs = net.unroll(features, state, keep if wipes else None)
    weights = torch.randn_like(outputs)
    net.backward((outputs * weights).sum())
    for agent in range(A):
        gru, head = torch_twin(net, agent)
        memory, expected = state[agent], []
        for t in range(L):
            memory = gru(features[agent, t], memory * keep[t, :, None])
            expected.append(head(memory))
        expected = torch.stack(expected)
        torch.testing.assert_close(outputs[agent], expected, rtol=1e-5, atol=1e-6)
        (expected * weights[agent]).sum().backward()
        gradients = torch.cat(
            [
                gru.weight_ih.grad.T.ravel(),
                gru.weight_hh.grad.T.ravel(),
                gru.bias_ih.grad,
                gru.bias_hh.grad[2 * H :],
                head[0].weight.grad.T.ravel(),
                head[0].bias.grad,
                head[2].weight.grad.T.ravel(),
                head[2].bias.grad,
            ]
        )
        torch.testing.assert_close(net.gradients[agent], gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recurrent", [0, H])
def test_unrolled_equals_step_by_step(recurrent, device):
    net = network([4, 5], recurrent, device=device)
    features = torch.randn(2, L, S, D, device=device)
    state = net.initial_state(S)
    steps = []
    for t in range(L):
        out, state = net.step(features[:, t], state)
        steps.append(out)
    torch.testing.assert_close(net.unroll(features, net.initial_state(S)), torch.stack(steps, dim=1))


@pytest.mark.parametrize("recurrent", [0, 64])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_agent_computes_and_learns_the_same_bits_alone_or_stacked(recurrent, activation, precision):
    """Layout invariance rests on this: not close, equal."""
    seeds = [7, 8, 9, 10, 11]
    stacked, alone = (
        StackedNetwork(37, recurrent, [64], 5, activation, s, gradient_precision=precision) for s in (seeds, seeds[3:4])
    )
    optimisers = Adam(stacked), Adam(alone)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        features = torch.randn(5, 20, 8, 37, generator=generator)
        for net, optimiser, x in zip((stacked, alone), optimisers, (features, features[3:4]), strict=True):
            net.backward(net.unroll(x, net.initial_state(8)).square().mean(dim=(1, 2, 3)).sum())
            optimiser.step(1e-2, max_gradient_norm=0.5)
    assert torch.equal(stacked.parameters[3], alone.parameters[0])


@pytest.mark.parametrize("recurrent", [0, H, 256])
@pytest.mark.parametrize("wiped", [False, True])
def test_a_policy_with_gradients_of_half_precision_gives_the_same_and_learns_much_the_same(recurrent, wiped, device):
    full, half = (
        Policy(
            range(A), D, 4, PolicySettings(recurrent_size=recurrent, hidden_sizes=(8,), gradient_precision=p), 0, device
        )
        for p in PRECISIONS
    )
    features = torch.randn(A, L, S, D, generator=torch.Generator().manual_seed(0)).to(device)
    keep = torch.ones(L, S, device=device)
    keep[3, 2] = 0
    for policy in (full, half):
        logits, values = policy.unroll(features, policy.initial_state(S), keep if wiped else None)
        policy.network.backward(logits.square().sum() + values.square().sum())
        if policy is full:
            expected = logits, values
    assert torch.equal(logits, expected[0])
    assert torch.equal(values, expected[1])
    assert half.network.gradients.dtype == torch.float32
    assert not torch.equal(full.network.gradients, half.network.gradients)
    for a, b in zip(full.network.gradients, half.network.gradients, strict=True):
        assert (a - b).norm() < 0.01 * a.norm()  # 8 significant bits


def test_no_agents_is_a_size_like_any_other():
    assert network([]).parameters.shape == (0, network([1]).parameters.shape[1])


def test_adam_equals_torchs_with_a_gradient_limit_per_agent():
    net = network([1, 2])
    twins = [net.parameters[agent].clone().requires_grad_() for agent in range(2)]
    optimisers = [torch.optim.Adam([twin], lr=1e-2, eps=1e-5) for twin in twins]
    mine = Adam(net)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 10.0, 0.1):
        net.gradients.copy_(torch.randn(net.gradients.shape, generator=generator) * scale)
        for agent, (twin, optimiser) in enumerate(zip(twins, optimisers, strict=True)):
            twin.grad = net.gradients[agent].clone()
            torch.nn.utils.clip_grad_norm_([twin], 0.5)
            optimiser.step()
        norms = net.gradients.norm(dim=1)
        torch.testing.assert_close(mine.step(1e-2, max_gradient_norm=0.5), norms)
        torch.testing.assert_close(net.parameters, torch.stack(twins).detach())


@pytest.mark.parametrize(("activation", "gain"), [("tanh", 5 / 3), ("relu", 2**0.5)])
def test_initial_weights_are_orthogonal_with_the_usual_gains_and_biases_zero(activation, gain):
    first = network([1, 2], hidden=(8,), activation=activation).arrays_of(1)
    for name, of_name in {"gru.hidden": 1.0, "layer0.weight": gain, "layer1.weight": 1.0}.items():
        for part in torch.from_numpy(first[name]).split(H, dim=1):
            torch.testing.assert_close(part.T @ part, of_name**2 * torch.eye(part.shape[1]), atol=1e-5, rtol=0)
    assert all(not array.any() for name, array in first.items() if "bias" in name)
