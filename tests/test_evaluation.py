"""Policies that come back from a run directory."""

import numpy as np
import pytest

from dials_mpi.algorithms.evaluation import load_player
from dials_mpi.config import resolve
from dials_mpi.errors import UserError
from dials_mpi.learning.policy import Policy
from dials_mpi.runs.policies import save_policies
from dials_mpi.simulators.registry import make_domain


@pytest.fixture
def run(tmp_path):
    c = resolve([("test", {"env": "warehouse"})], 4)
    domain = make_domain(c.env, c.agents, c.domain)
    policy = Policy(range(4), domain.observation_size, domain.n_actions, c.policy, seed=7)
    save_policies(tmp_path / "policies.npz", policy.network, 100)
    return tmp_path, c, domain, policy


def test_a_runs_policies_act_again(run):
    folder, c, domain, policy = run
    player = load_player(folder, c, domain, copies=3, seed=0)
    assert np.array_equal(player._policy.parameters, policy.parameters)
    actions = player.act(np.zeros((4, 3, domain.observation_size)))
    assert actions.shape == (4, 3)
    assert set(actions.ravel()) <= set(range(4))


def test_damaged_policies_are_named(run):
    folder, c, domain, policy = run
    file = folder / "policies.npz"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (b"", whole[: len(whole) // 2], bytes(flipped), b"no archive"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"policies\.npz: no policies to be read \(.+\)"):
            load_player(folder, c, domain, 1, 0)
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        load_player(folder, c, domain, 1, 0)
    policy.parameters[2, 5] = float("nan")
    save_policies(file, policy.network, 100)
    with pytest.raises(UserError, match="damaged"):
        load_player(folder, c, domain, 1, 0)


def test_policies_of_another_configuration_are_refused(run):
    folder, c, domain, _ = run
    other = c.model_copy(update={"policy": c.policy.model_copy(update={"hidden_sizes": (32,)})})
    with pytest.raises(UserError, match="but the run's configuration makes"):
        load_player(folder, other, domain, 1, 0)
