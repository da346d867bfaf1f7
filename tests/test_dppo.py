"""DPPO: its update against a plain float64 reference, what neighbours tell each other, and that it learns."""

import networkx
import numpy as np
import pytest
import reference_dppo
import reference_ppo
import torch
from conftest import SMALL_PLATOON, run_here
from mpi4py import MPI

from dials_mpi.algorithms.dppo import Learner
from dials_mpi.config import resolve
from dials_mpi.learning.settings import DPPO_STATISTICS
from dials_mpi.learning.transitions import Transitions
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.neighbours import Neighbours
from dials_mpi.runs.clock import Clock
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.simulators.interface import Domain, DomainSettings

N, E, T = 5, 3, 12
SETTINGS = {
    "episodes": E,
    "critic_radius": 2,
    "policy_radius": 1,
    "epochs": 4,
    "minibatch_size": 9,
    "policy_learning_rate": 0.02,
    "critic_learning_rate": 0.01,
    "discount": 0.9,
    "gae_lambda": 0.8,
    "target_kl": 0.004,
    "entropy_coefficient": 0.05,
    "max_gradient_norm": 0.3,
    "reward_scale": 0.4,
    "anneal_steps": 1000,
}
ABSORBING = -1.5


class Line(Domain):
    """Agents in a line; nobody simulates it."""

    n_actions, observation_size, horizon, influence = 3, 2, T, None
    absorbing_reward = ABSORBING

    def __init__(self):
        super().__init__(N, DomainSettings())
        self.graph = networkx.path_graph(N)

    def global_simulator(self, copies, controller=None): ...

    def local_simulator(self, agents, copies): ...


def configuration(shared=False, **changes):
    values = {
        "env": "platoon",
        "mode": "dppo",
        "policy": {"hidden_sizes": [6], "shared": shared},
        "dppo": {**SETTINGS, **changes},
    }
    return resolve([("test", values)], N)


def episodes(seed=0):
    """Of policies as they are; one episode ends early for all, one for two of the agents."""
    g = np.random.default_rng(seed)
    data = Transitions.empty(N, E, Line())
    data.observations[:] = g.normal(size=data.observations.shape)
    data.actions[:] = g.integers(3, size=data.actions.shape)
    data.rewards[:] = g.normal(size=data.rewards.shape)
    data.terminated[:] = False
    data.terminated[:, 0, 7:] = True
    data.terminated[[1, 4], 2, 3:] = True
    data.all_over[:] = data.terminated.all(axis=0)
    return data


def learner(c):
    sees = [
        Neighbours(Line().graph, r, MPI.COMM_SELF, Layout(N, 1), Clock())
        for r in (c.dppo.policy_radius, c.dppo.critic_radius)
    ]
    mean = (lambda rows: rows.astype(np.float64).mean(axis=0).astype(np.float32)) if c.policy.shared else None
    made = Learner(c, Line(), range(N), *sees, mean)
    noise = torch.Generator().manual_seed(1)
    for network in (made.policy, made.critic):
        shape = network.parameters.shape[1:] if c.policy.shared else network.parameters.shape
        network.parameters.add_(0.3 * torch.randn(shape, generator=noise))
    return made


def twins(network):
    return [reference_ppo.Agent(network.arrays_of(row)) for row in range(N)]


def flat(agents):
    return torch.stack([torch.cat([w.detach().ravel() for w in agent.weights.values()]) for agent in agents])


def learned(**changes):
    """Two updates by the product and by the reference: parameters of both networks, and statistics."""
    c = configuration(**changes)
    made = learner(c)
    policies, critics = twins(made.policy), twins(made.critic)
    for seed, progress in enumerate((0.25, 0.5)):
        data = episodes(seed)
        found = made.update(data, progress, np.random.default_rng(seed))
        true = reference_dppo.update(
            policies, critics, data.arrays(), c.dppo, ABSORBING, progress, np.random.default_rng(seed)
        )
    return made, (flat(policies), flat(critics)), found, true


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"critic_radius": 0},
        {"critic_radius": None},
        {"policy_radius": 0},
        {"policy_radius": 2},
        {"target_kl": None},
        {"epochs": 1},
        {"anneal": False},
        {"max_gradient_norm": None},
        {"entropy_coefficient": 0.0},
    ],
    ids=str,
)
def test_two_updates_equal_the_reference(change):
    made, (policies, critics), found, true = learned(**change)
    torch.testing.assert_close(made.policy.parameters.double(), policies, rtol=0, atol=5e-6)
    torch.testing.assert_close(made.critic.parameters.double(), critics, rtol=0, atol=5e-6)
    assert set(found) == set(DPPO_STATISTICS)
    for name in true[0]:
        expected = [agent[name] for agent in true]
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    if not change:
        assert len({agent["epochs"] for agent in true}) > 1, "some agents have stopped before others"


def test_what_is_left_out_would_have_mattered():
    """Radii, the absorbing state and the limit of the divergence change what these episodes teach."""
    truth = learned()[1]
    for change in ({"critic_radius": 1}, {"policy_radius": 0}, {"target_kl": None}):
        others = learned(**change)[1]
        assert any(
            one.shape != other.shape or not torch.allclose(one, other, atol=1e-3)
            for one, other in zip(truth, others, strict=True)
        ), change


def test_of_a_shared_policy_all_rows_stay_the_same():
    c = configuration(shared=True)
    made = learner(c)
    for seed in range(2):
        made.update(episodes(seed), 0.1, np.random.default_rng(seed))
    for network in (made.policy, made.critic):
        assert (network.parameters == network.parameters[0]).all()


def test_an_agent_whose_episodes_are_over_from_the_start_learns_nothing_and_spoils_nothing():
    data = episodes()
    data.terminated[3] = True
    made = learner(configuration())
    before = made.policy.parameters.clone()
    found = made.update(data, 0.0, np.random.default_rng(0))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert torch.isfinite(made.policy.parameters).all()
    assert not torch.equal(made.policy.parameters[2], before[2])


def test_a_run_learns_in_whole_episodes_and_says_so(tmp_path):
    records = read_metrics(run_here(tmp_path, "--env=platoon", "--agents=4", *SMALL_PLATOON))
    learnt = [record for record in records if record["phase"] == "learn"]
    assert [record["step"] for record in learnt] == [80, 160, 240]
    assert set(DPPO_STATISTICS) <= learnt[0].keys()
    assert [record["step"] for record in records if record["phase"] == "evaluate"] == [0, 80, 160, 240]
