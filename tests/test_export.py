"""Policies as files for programs that do not have this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dials_mpi.analysis.reading import open_run
from dials_mpi.config import resolve
from dials_mpi.learning.networks import as_features
from dials_mpi.learning.policy import Policy
from dials_mpi.runs.policies import save_policies
from dials_mpi.simulators.registry import make_domain
from dials_mpi.training.evaluation import load_policy

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import export_policy

STRANGER = """
import json, sys
from pathlib import Path
import numpy as np
sys.modules["dials_mpi"] = None  # cannot be imported, not even where it is installed
episode = np.load("episode.npz")
card = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

def torchscript(file):
    import torch
    policy = torch.jit.load(file)
    def step(inputs):
        outputs = policy(*(torch.from_numpy(inputs[given["name"]]) for given in card["inputs"]))
        return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return step

def onnx(file):
    import onnxruntime
    assert "torch" not in sys.modules
    session = onnxruntime.InferenceSession(file)
    assert [given.name for given in session.get_inputs()] == [given["name"] for given in card["inputs"]]
    names = [given["name"] for given in card["outputs"]]
    return lambda inputs: session.run(names, inputs)

for form in ("onnx", "torchscript"):
    step = {"torchscript": torchscript, "onnx": onnx}[form](card["files"][form])
    worst = 0.0

    def compare(outputs, expected):
        global worst
        for output, values in zip(outputs, expected, strict=True):
            assert output.dtype == np.float32 and output.shape == np.shape(values)
            worst = max(worst, float(np.abs(output - np.array(values)).max()))

    for example in card["example"]:
        outputs = step({name: np.array(values, np.float32) for name, values in example["inputs"].items()})
        compare(outputs, [example["outputs"][given["name"]] for given in card["outputs"]])
    copies = episode["observations"].shape[1]
    memory = np.zeros((copies, card["memory"]["size"] if card["memory"] else 0), np.float32)
    actions = []
    for observations, logits in zip(episode["observations"], episode["logits"], strict=True):
        inputs = {"observation": observations.astype(np.float32)}
        if card["memory"]:
            inputs["memory"] = memory
        outputs = step(inputs)
        compare(outputs[:1], [logits])
        actions.append(outputs[0].argmax(-1))
        memory = outputs[-1]
    if card["memory"]:
        compare([memory], [episode["memory"]])
    assert (np.stack(actions) == episode["logits"].argmax(-1)).mean() > 0.999
    print(form, worst)
    assert worst < 1e-5
"""


def play(run, agent, folder, copies=3):
    """Records an episode of all agents on the GS: what one of them saw and its logits, and its memory at the end."""
    c = resolve([("run", open_run(run).configuration)], 1)
    domain = make_domain(c.env, c.agents, c.domain)
    policy = load_policy(run, c, domain)[2]
    state, seen, logits = policy.initial_state(copies), [], []
    generator = np.random.default_rng(0)
    with domain.global_simulator(copies) as simulator:
        simulator.seed([np.random.default_rng(copy) for copy in range(copies)])
        observations = simulator.reset()
        for _ in range(domain.horizon):
            seen.append(observations[agent].copy())
            all_logits, _, state = policy.step(as_features(observations), state)
            logits.append(all_logits[agent].numpy())
            observations = simulator.step(generator.integers(domain.n_actions, size=(c.agents, copies))).observations
    memory = [] if state is None else state[agent]
    np.savez(folder / "episode.npz", observations=seen, logits=logits, memory=memory)
    return domain


def check_as_a_stranger(folder, card):
    """In a Python of its own that cannot import this package."""
    command = [sys.executable, "-I", "-c", STRANGER, card]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 2


@pytest.fixture(scope="module")
def traffic_run(tmp_path_factory):
    """As a run leaves it behind: policies without memory, of no training."""
    folder = tmp_path_factory.mktemp("traffic") / "lights"
    folder.mkdir()
    c = resolve([("test", {"env": "traffic", "domain": {"horizon": 60}, "policy": {"activation": "relu"}})], 4)
    (folder / "config.yaml").write_text(c.to_yaml())
    domain = make_domain(c.env, 4, c.domain)
    policy = Policy(range(4), domain.observation_size, domain.n_actions, c.policy, seed=7)
    policy.parameters.add_(0.1 * torch.randn(policy.parameters.shape, generator=torch.Generator().manual_seed(0)))
    save_policies(
        folder / "policies.npz", {"policy": policy.parameters.numpy()}, {"policy": policy.network.shapes}, 100
    )
    return folder


@pytest.mark.parametrize("name", ["small_run", "traffic_run"])
def test_exported_policies_act_as_the_policy_without_the_package(name, request, tmp_path):
    run, agent = request.getfixturevalue(name), 2
    assert export_policy.main(
        [str(run), f"--agent={agent}", "--format", "onnx", "torchscript", f"--out={tmp_path}"]
    ) == 0  # fmt: skip
    domain = play(run, agent, tmp_path)
    check_as_a_stranger(tmp_path, "agent_0002.json")

    card = json.loads((tmp_path / "agent_0002.json").read_text(encoding="utf-8"))
    assert card["observation"]["entries"] == list(domain.observation_names)
    assert card["observation"]["range"] == [0, 1]
    assert card["action"]["names"] == list(domain.action_names)
    assert card["inputs"][0] == {
        "name": "observation",
        "shape": ["batch", domain.observation_size],
        "dtype": "float32",
    }
    assert card["agent"] == {"id": 2, "row": 1, "column": 0}
    assert (card["memory"] is None) == (name == "traffic_run")
    assert card["domain"]["settings"]["horizon"] == domain.horizon == card["domain"]["steps_per_episode"]


def test_the_card_says_what_the_policy_earned(small_run, tmp_path):
    assert export_policy.main([str(small_run), "--agent=1", "--agent=3", "--best", f"--out={tmp_path / 'new'}"]) == 0
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "agent_0001_best.json", "agent_0001_best.pt", "agent_0003_best.json", "agent_0003_best.pt",
    ]  # fmt: skip
    card = json.loads((tmp_path / "new" / "agent_0003_best.json").read_text(encoding="utf-8"))
    run = open_run(small_run)
    returns = run.series("evaluate", "mean_return", per_agent=True)
    best = int(run.series("evaluate", "mean_return").values.argmax())
    training = card["training"]
    assert training["step"] == returns.steps[best]
    assert training["return"]["agent"] == returns.values[best, 3]
    assert training["return"]["episodes"] == 2
    assert (training["policies"], training["mode"], training["seed"]) == ("policies_best.npz", "dials", 3)
    assert card["versions"]["torch"] == torch.__version__
    assert card["memory"]["size"] == 32


def test_all_agents_of_a_users_own_domain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = resolve([("test", {"env": "ring:Ring", "policy": {"recurrent_size": 8, "hidden_sizes": []}})], 3, "ring:Ring")
    (tmp_path / "config.yaml").write_text(c.to_yaml())
    policy = Policy(range(3), 2, 2, c.policy, seed=7)
    save_policies(
        tmp_path / "policies.npz", {"policy": policy.parameters.numpy()}, {"policy": policy.network.shapes}, 0
    )
    assert export_policy.main([".", "--all", "--env=ring:Ring"]) == 0
    folder = tmp_path / "exported" / tmp_path.name
    assert len(list(folder.glob("agent_*.pt"))) == 3
    card = json.loads((folder / "agent_0002.json").read_text(encoding="utf-8"))
    assert card["observation"]["entries"] == ["observation_0", "observation_1"]
    assert card["observation"]["range"] == [None, None]
    assert card["training"]["return"] is None
    assert card["agent"] == {"id": 2, "row": 0, "column": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--agent=4"], "--agent: 4 is none of 0 to 3"),
        (["nowhere", "--all"], "nowhere is no run directory: there is no such directory"),
        (["RUN", "--all", "--checkpoint=7"], "there is no checkpoint of step 7"),
        (["RUN", "--all", "--out=RUN/config.yaml/here"], "cannot be written (Not a directory)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(small_run, capsys, arguments, message):
    assert export_policy.main([word.replace("RUN", str(small_run)) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export_policy: ")
    assert message in error
    assert error.count("\n") == 1


def test_onnx_is_an_extra(small_run, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export_policy.main([str(small_run), "--all", "--format", "onnx", f"--out={tmp_path / 'new'}"]) == 2
    assert "pip install 'dials_mpi[export]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
