"""Policies that come back from a run directory, and what they earn there and elsewhere."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CommandLine
from test_command_line import one_line

from dials_mpi.__main__ import main
from dials_mpi.analysis.reading import open_run
from dials_mpi.config import resolve
from dials_mpi.errors import UserError
from dials_mpi.learning.policy import Policy
from dials_mpi.learning.rollout import Player
from dials_mpi.runs.metrics import read_metrics
from dials_mpi.runs.policies import save_policies
from dials_mpi.simulators.grid import counterparts
from dials_mpi.simulators.registry import make_domain
from dials_mpi.training.evaluation import Returns, evaluate_actor, evaluate_controller, load_actor, load_policy


@pytest.fixture
def run(tmp_path):
    c = resolve([("test", {"env": "warehouse"})], 4)
    domain = make_domain(c.env, c.agents, c.domain)
    policy = Policy(range(4), domain.observation_size, domain.n_actions, c.policy, seed=7)
    save_policies(
        tmp_path / "policies.npz", {"policy": policy.parameters.numpy()}, {"policy": policy.network.shapes}, 100
    )
    return tmp_path, c, domain, policy


def test_a_runs_policies_act_again(run):
    folder, c, domain, policy = run
    player = load_actor(folder, c, domain, copies=3, seed=0)
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
            load_actor(folder, c, domain, 1, 0)
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        load_actor(folder, c, domain, 1, 0)
    policy.parameters[2, 5] = float("nan")
    save_policies(file, {"policy": policy.parameters.numpy()}, {"policy": policy.network.shapes}, 100)
    with pytest.raises(UserError, match="damaged"):
        load_actor(folder, c, domain, 1, 0)


def test_policies_of_another_configuration_are_refused(run):
    folder, c, domain, _ = run
    other = c.model_copy(update={"policy": c.policy.model_copy(update={"hidden_sizes": (32,)})})
    with pytest.raises(UserError, match="but the run's configuration makes"):
        load_actor(folder, other, domain, 1, 0)


def test_returns_by_hand():
    """Two agents, three episodes: what is an agent's, an episode's and everybody's must not be confused."""
    returns = Returns(np.array([[1, 2, 6], [3, 8, 4]], np.float32))
    # Agents: (1 + 2 + 6) / 3 = 3 and (3 + 8 + 4) / 3 = 5. Episodes: 2, 5, 5; all: 4.
    assert returns.per_agent.tolist() == [3.0, 5.0]
    assert returns.mean_return == 4.0
    # Deviations of the episodes -2, 1, 1: variance (4 + 1 + 1) / 2 = 3, of their mean 3 / 3 = 1. (All six numbers as if
    # they were independent: squares 9 + 4 + 4 + 1 + 16 + 0 = 34, √(34 / 5 / 6) = 1.06.)
    assert returns.standard_error == pytest.approx(1.0)
    assert str(returns) == "4.00 ± 1.00 (agents 3.00 to 5.00)"


def test_a_record_of_returns_by_hand():
    """Three agents, two episodes."""
    returns = Returns(np.array([[0, 1], [2, 2], [-1, -3]], np.float32))
    # Episodes: 1/3 and 0; mean 1/6; deviations ±1/6, variance 2/36, of the mean 1/36.
    assert returns.as_record() == {
        "mean_return": 0.166667,
        "standard_error": 0.166667,
        "episodes": 2,
        "min_agent": -2.0,
        "max_agent": 2.0,
        "per_agent": {"mean_return": [0.5, 2.0, -2.0]},
    }


def test_agents_that_share_their_luck_tell_no_more_than_one_of_them():
    """A hundred agents that earn the same in each of two episodes: still two observations, 0 and 2, error 1."""
    assert Returns(np.tile(np.float32([0, 2]), (100, 1))).standard_error == pytest.approx(1.0)


def test_means_of_large_returns_keep_their_digits():
    """2²⁴ + 1 is no float32."""
    assert Returns(np.array([[2**24, 1]], np.float32)).mean_return == 2**23 + 0.5
    assert Returns(np.array([[2**24, 1]], np.float32)).per_agent.tolist() == [2**23 + 0.5]


def content(folder):
    """Every file of a folder with the hash of its bytes and its time."""
    return {
        file: (hashlib.sha256(file.read_bytes()).digest(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def grid_of(trained, shape):
    return counterparts(shape, trained).reshape(shape).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 7), (3, 5), (10, 10)])
def test_a_grid_is_its_own_counterpart(shape):
    assert counterparts(shape, shape).tolist() == list(range(shape[0] * shape[1]))


def test_corners_edges_and_inner_places_keep_their_kind():
    assert grid_of((2, 2), (3, 3)) == [[0, 1, 1], [2, 3, 3], [2, 3, 3]]
    assert grid_of((2, 2), (4, 4)) == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert grid_of((3, 3), (5, 4)) == [[0, 1, 1, 2], *[[3, 4, 4, 5]] * 3, [6, 7, 7, 8]]
    assert grid_of((5, 5), (2, 2)) == [[0, 4], [20, 24]]
    assert grid_of((5, 5), (3, 3)) == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]
    assert grid_of((5, 5), (1, 1)) == [[12]]
    assert grid_of((1, 4), (1, 8)) == [[0, 1, 1, 1, 2, 2, 2, 3]]


@pytest.mark.parametrize("trained", [(2, 2), (3, 3), (5, 5), (7, 7)])
@pytest.mark.parametrize("side", [3, 5, 10])
def test_borders_go_to_the_same_borders_and_all_inner_policies_are_used_alike(trained, side):
    rows, columns = np.divmod(counterparts((side, side), trained).reshape(side, side), trained[0])
    assert np.array_equal(rows, columns.T)
    last = trained[0] - 1
    assert (rows[0] == 0).all()
    assert (rows[-1] == last).all()
    assert (np.diff(rows[:, 0]) >= 0).all()
    if last > 1:
        assert (rows[1:-1] > 0).all()
        assert (rows[1:-1] < last).all()
        counts = np.bincount(rows[1:-1, 0], minlength=last)[1:last]
        assert counts.max() - counts.min() <= 1


def test_the_runs_own_seed_repeats_its_evaluations_to_the_digit(small_run, tmp_path, capsys):
    before = content(small_run)
    records = [record for record in read_metrics(small_run) if record["phase"] == "evaluate"]
    best = max(records, key=lambda record: record["mean_return"])
    for arguments, record in ((["--checkpoint=1600"], records[-1]), (["--best"], best), ([], records[-1])):
        assert main(["evaluate", str(small_run), "--seed=3", f"--out={tmp_path / 'e.json'}", *arguments]) == 0
        result = json.loads((tmp_path / "e.json").read_text())
        assert result["step"] == record["step"]
        assert result["evaluate"] == {key: record[key] for key in result["evaluate"]}
        references = {name: (r["mean_return"], r["standard_error"]) for name, r in result["references"].items()}
        assert references == open_run(small_run).references
    out = capsys.readouterr().out
    assert f"policies: return {record['mean_return']:.2f} ± {record['standard_error']:.2f} (agents" in out
    assert content(small_run) == before, "the run is only read"


def test_a_run_counts_the_agents_above_the_best_controller_at_their_own_places(command_line):
    """Agent i is paid i + 1, so that most are above the controller's mean; at their places they can draw level."""
    more = ["--set=ppo.sequence_length=10", "--set=ppo.rollout_length=10", "--set=ppo.minibatch_size=80"]
    more += ["--set=evaluation.interval=800", "--set=evaluation.episodes=4", "--set=policy.recurrent_size=0"]
    result = command_line("--env=ring:Unequal", "--mode=gs", "--agents=8", "--name=u", "--steps=4000", *more)
    assert result.returncode == 0, result.stderr
    reference, *records = read_metrics(command_line.folder / "runs" / "u")
    assert reference["per_agent"]["mean_return"] == [10.0 * (i + 1) for i in range(8)]
    evaluations = [record for record in records if record["phase"] == "evaluate"]
    assert max(evaluations[-1]["per_agent"]["mean_return"]) > reference["mean_return"] == 45
    assert [record["share_above_reference"] for record in evaluations] == [0.0] * 6


def test_other_episodes_by_default_and_another_world_on_request(small_run, tmp_path):
    out = tmp_path / "e.json"
    results = []
    for more in ([], [], ["--seed=4"], ["--seed=5"], ["--set=domain.item_probability=0.2", "--set=domain.horizon=50"]):
        assert main(["evaluate", str(small_run), "--no-references", f"--out={out}", *more]) == 0
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1] == results[2], "the seed after the run's own"
    assert results[0]["evaluate"] != results[3]["evaluate"]
    assert results[4]["domain_settings"]["horizon"] == 50
    assert results[0]["references"] == {}


def test_policies_placed_on_a_larger_grid_earn_what_they_earn_there(small_run, tmp_path, capsys):
    out = tmp_path / "e.json"
    assert main(["evaluate", str(small_run), "--agents=9", "--episodes=3", f"--out={out}"]) == 0
    assert "9 agents (3×3) by policies trained on 2×2, 3 episodes, seed 4" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["placement"] == [0, 1, 1, 2, 3, 3, 2, 3, 3]
    assert len(result["evaluate"]["per_agent"]["mean_return"]) == 9

    c = resolve([("run", open_run(small_run).configuration)], 1)
    small, large = (make_domain("warehouse", agents, c.domain) for agents in (4, 9))
    _, step, trained = load_policy(small_run, c, small)
    policy = Policy(range(9), 37, 4, c.policy, seed=0)
    for agent, source in enumerate(result["placement"]):
        policy.parameters[agent] = trained.parameters[source]
    assert evaluate_actor(large, Player(policy), 3, 4, step).as_record() == result["evaluate"]


def test_with_argmax_agents_take_their_most_probable_actions(small_run, tmp_path):
    c = resolve([("run", open_run(small_run).configuration)], 1)
    domain = make_domain("warehouse", 4, c.domain)
    _, step, policy = load_policy(small_run, c, domain)
    player = Player(policy)
    player.start(2, None)
    observations = np.random.default_rng(0).integers(2, size=(4, 2, domain.observation_size)).astype(np.uint8)
    state = policy.initial_state(2)
    for _ in range(3):
        logits, _, state = policy.step(torch.from_numpy(observations).float(), state)
        assert np.array_equal(player.act(observations), logits.argmax(dim=-1).numpy())
    assert main(["evaluate", str(small_run), "--argmax", "--episodes=3", f"--out={tmp_path / 'a.json'}"]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["argmax"] is True
    expected = evaluate_actor(domain, player, 3, 4, step, argmax=True)
    assert result["evaluate"] == expected.as_record()
    drawn = evaluate_actor(domain, player, 3, 4, step)
    assert not np.array_equal(drawn.episodes, expected.episodes)


def test_many_episodes_are_played_in_batches_that_begin_alike(small_run):
    c = resolve([("run", open_run(small_run).configuration)], 1)
    domain = make_domain("warehouse", 4, c.domain)
    policy = load_policy(small_run, c, domain)[2]
    ticks = []
    returns = evaluate_actor(domain, Player(policy), 5, 0, 0, copies=2, tick=lambda: ticks.append(1)).episodes
    assert returns.shape == (4, 5)
    assert len(ticks) == 3 * domain.horizon
    assert np.array_equal(returns[:, :2], evaluate_actor(domain, Player(policy), 2, 0, 0).episodes)
    assert len(np.unique(returns)) == returns.size, "no episode comes twice"
    alike = [evaluate_controller(domain, "closest", 5, 0, copies).episodes for copies in (2, None)]
    assert np.array_equal(*alike)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run directory: there is no such directory"),
        (["."], "is no run directory: it has no config.yaml"),
        (["RUN", "--agents=10"], "agents: 10 agents make no m×m grid; the nearest that do: 9 or 16"),
        (["RUN", "--checkpoint=7"], "there is no checkpoint of step 7; there are: 1600"),
        (["RUN", "--best", "--checkpoint=1600"], "argument --checkpoint: not allowed with argument --best"),
        (["RUN", "--episodes=1"], "argument --episodes: 1 is less than 2"),
        (["RUN", "--set=ppo.copies=2"], "--set ppo.copies=2: only settings of the domain can be other than the run's"),
        (["RUN", "--set=domain.horizon=0"], "domain.horizon: 0: Input should be greater than or equal to 1"),
        (["RUN", "--out=nowhere/e.json"], "--out: nowhere is no folder that can be written"),
        (["RUN", "--out=RUN/metrics.jsonl"], "is in the run, which is only read"),
        (["RUN", "--agent=9"], "unrecognized arguments: --agent=9 (see python -m dials_mpi evaluate --help)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(small_run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["evaluate", *(word.replace("RUN", str(small_run)) for word in arguments)])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.startswith("dials_mpi: ")
    assert error.count("\n") == 1


def test_damaged_runs_are_named(small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)

    def complaint(*arguments):
        assert main(["evaluate", str(run), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    shard = run / "checkpoints" / "step_000000001600" / "rank_0000.npz"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "rank_0000.npz has" in complaint("--checkpoint=1600")
    np.save(tmp_path / "one.npy", np.arange(3))
    for content in (b"\x80\x04K\x03.", b"these are my policies\n", b"", (tmp_path / "one.npy").read_bytes()):
        (run / "policies.npz").write_bytes(content)  # a pickle, a text, nothing, another format of numpy's
        said = complaint()
        assert "policies.npz: no policies to be read (it is no .npz file of policies); restore it\n" in said
    np.savez(run / "policies.npz", other=np.arange(3))
    assert "policies.npz: no policies to be read ('step is not a file in the archive'); restore it" in complaint()
    (run / "policies.npz").unlink()
    assert (
        "policies.npz: no policies to be read (No such file or directory); a run writes them at its eval" in complaint()
    )
    (run / "policies.npz").mkdir()
    assert "policies.npz: no policies to be read (Is a directory); restore it\n" in complaint()
    (run / "config.yaml").write_text("agents: [")
    assert "config.yaml: cannot be read" in complaint()


def test_policies_do_not_go_where_observations_have_another_size(tmp_path, capsys):
    c = resolve([("test", {"env": "traffic"})], 1)
    (tmp_path / "config.yaml").write_text(c.to_yaml())
    domain = make_domain(c.env, 1, c.domain)
    policy = Policy(range(1), domain.observation_size, domain.n_actions, c.policy, seed=7)
    save_policies(
        tmp_path / "policies.npz", {"policy": policy.parameters.numpy()}, {"policy": policy.network.shapes}, 100
    )
    assert main(["evaluate", str(tmp_path), "--set=domain.lanes=2"]) == 2
    assert "traffic: observation_size is 76 there, but 40 in the run" in capsys.readouterr().err
    more = ["--agents=4", "--episodes=2", "--set=domain.horizon=20"]
    assert main(["evaluate", str(tmp_path), *more]) == 0
    assert "hand-coded reference, fixed-time: return" in capsys.readouterr().out


def test_the_command_needs_no_mpi_library_and_refuses_many_ranks(small_run, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('no MPI here')")
    command_line = CommandLine(tmp_path)
    command_line.environment["PYTHONPATH"] = f"{tmp_path}:{command_line.environment['PYTHONPATH']}"
    result = command_line("evaluate", str(small_run), "--no-references")
    assert result.returncode == 0, result.stderr
    assert "policies: return" in result.stdout
    result = command_line("evaluate", str(small_run), ranks=2)
    assert one_line(result) == "dials_mpi: evaluate: works in one process, not in 2; start it without mpirun or srun"
    assert result.returncode == 2


def test_a_value_that_is_not_finite_is_named_when_policies_are_evaluated(command_line):
    env = "--env=ring:Breaks"
    small = ["--steps=80", "--set=ppo.copies=4", "--set=ppo.rollout_length=20", "--set=ppo.sequence_length=1"]
    small += ["--set=ppo.minibatch_size=40", "--set=dataset.steps=40", "--set=evaluation.copies=12"]
    small += ["--set=evaluation.episodes=12", "--set=evaluation.handcoded_episodes=0", "--set=domain.step=99"]
    result = command_line(env, "--agents=4", "--name=r", *small)
    assert result.returncode == 0, result.stderr
    broken = ["--set=domain.step=7", "--set=domain.simulator=global", "--no-references"]
    result = command_line("evaluate", "runs/r", env, *broken)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "dials_mpi: domain ring: GlobalSimulator: reward nan at step 7, agent 2, copy 10 is not finite"
    )
    assert "Traceback" not in result.stderr
