"""`--dry-run`: bounded in time and memory whatever is asked for, obeys signals at once; and what is refused early."""

import signal
import sys
import time

import psutil
import pytest
from conftest import SMALL, SMALL_TRAFFIC, TESTS, of_mode, values_of_mode, wait_for

from dials_mpi.config import parse_override, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.layout import Layout
from dials_mpi.parallel.machines import Machines, memory_here
from dials_mpi.scaling import estimate, measuring
from dials_mpi.scaling.estimate import check, sizes_of_blocks, sizes_of_systems
from dials_mpi.scaling.memory import episode_memory, joint_memory, lacking, owners_memory
from dials_mpi.scaling.model import Cluster, Costs, Curve, costly_settings, predict
from dials_mpi.simulators.registry import make_domain
from dials_mpi.training.plan import check_counts, plan

MIB = 1 << 20
SLEEPER = ["sleep", "86400.25"]


@pytest.fixture(autouse=True)
def _rings(monkeypatch):
    monkeypatch.syspath_prepend(TESTS)


def configuration(env="warehouse", agents=4, settings=SMALL, **values):
    """Of `SMALL`, without its steps."""
    mode = values.get("mode", "dials")
    layers = [parse_override(a.removeprefix("--set=")) for a in of_mode(mode, settings) if a.startswith("--set=")]
    layers = [("test", layer) for layer in (*layers, values_of_mode(mode, values))]
    return resolve([("--env", {"env": env}), *layers], agents, env)


def domain_of(c):
    return make_domain(c.env, c.agents, c.domain)


def children(process, *words):
    """Processes that a process has started, and these in turn, whose command lines have the words."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if set(words) <= set(child.cmdline())]


def is_over(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_million_agents_get_an_estimate_from_small_systems(command_line):
    """And the line that a run of them would get here."""
    result = command_line("--env=warehouse", "--agents=1000000", "--dry-run", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "with 16 agents" in result.stdout
    assert (
        "extrapolated: joint steps of 1,000,000 agents from 16 to 64; blocks of 1,000,000 agents from" in result.stdout
    )
    for text in ("a run here would be refused: agents: 1,000,000 agents need at least", "time: about", "memory: "):
        assert text in result.stdout
    measured = [line.partition("] ")[2] for line in result.stderr.splitlines()]
    assert measured == [
        "checking the domain with 16 agents",
        "measuring joint steps of 16 agents",
        "measuring joint steps of 64 agents",
        "measuring a block of 4 agents",
        "measuring a block of 16 agents",
    ]
    assert list(command_line.folder.iterdir()) == []


def test_a_run_that_no_machine_here_can_hold_is_refused_before_anything_is_built(command_line):
    result = command_line("--env=traffic", "--agents=100000000", "--name=huge")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("dials_mpi: agents: 100,000,000 agents need at least ")
    assert "GiB of memory on" in line
    assert list(command_line.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--steps=1000000000000000"],
            "steps: 1,000,000,000,000,000 steps are 22,321,428,572 times evaluation.interval",
        ),
        (["--set=evaluation.episodes=1000000000"], "evaluation.episodes: 1,000,000,000 episodes, 25 side by side"),
        (
            ["--set=dataset.steps=1000000000", "--set=dataset.copies=1"],
            "dataset.steps: 10,000,000 episodes, 1 side by side",
        ),
        (["--steps=10000000000000000000"], "steps: 10000000000000000000: Input should be less than or equal to"),
        (["--agents=4000000000"], "agents: 4000000000: Input should be less than or equal to 2147483647"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_could_not_even_be_listed_is_refused_in_one_line(command_line, arguments, message, dry):
    result = command_line("--env=warehouse", "--name=endless", *arguments, *dry)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"dials_mpi: {message}")
    assert list(command_line.folder.iterdir()) == []


def test_as_many_intervals_as_can_be_listed_are_not_refused():
    """A million evaluations, each after one update of 200 steps; one more is one too many."""
    ppo = {"rollout_length": 100, "copies": 2, "minibatch_size": 200}
    c = configuration(settings=[], mode="gs", ppo=ppo, evaluation={"interval": 1})
    most = c.model_copy(update={"steps": 200 * 1_000_000})
    check_counts(most, 100)
    assert len(plan(most, 100)) == 1_000_000
    with pytest.raises(UserError, match=r"are 1,000,001 times evaluation\.interval"):
        check_counts(c.model_copy(update={"steps": 200 * 1_000_000 + 1}), 100)


@pytest.mark.parametrize("mode", ["dials", "gs"])
def test_a_prediction_takes_no_longer_for_more_updates(mode):
    """A billion years of one segment."""
    ever = 10**17
    c = configuration(mode=mode, steps=ever, evaluation={"interval": ever}, predictor={"interval": ever})
    one = Curve(((1, 1.0),))
    curves = dict.fromkeys(("block_start", "learn", "act", "epoch", "setup", "collect", "evaluate", "reference"), one)
    memory = {"memory": 1.0, "block_memory": one, "joint_memory": one}
    bytes_ = {"policy_bytes": 1, "dataset_bytes": 1, "rollout_bytes": 1}
    costs = Costs(costly_settings(c), horizon=100, controllers=1, start=1.0, **curves, **bytes_, **memory)
    counts = predict(c, Layout(4, 5), costs, Cluster(8)).counts
    assert counts["updates"] == ever // c.ppo.rollout_steps
    # Before the first update, and after every one in mode gs, where rank 0 acts; else after every segment.
    assert counts["gathers"] == 1 + (counts["updates"] if mode == "gs" else 1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_ends_a_dry_run_and_all_that_it_has_started(command_line, how):
    """Ended by the signal, which shells call 128 + its number; nothing is left in the folder for temporary files."""
    temporary = command_line.folder / "temporary"
    temporary.mkdir()
    process = command_line.start(
        "--env=ring:Endless", "--agents=5", "--dry-run", "--set=dataset.steps=200", TMPDIR=str(temporary)
    )
    wait_for(lambda: children(process, *SLEEPER), process)
    started = children(process)
    assert len(started) >= 2, "the process that measures, and what that waits for"
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -how
    assert "Traceback" not in errors
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left
    if how != signal.SIGKILL:
        assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("everybody", [True, False])
def test_a_signal_ends_a_dry_run_on_all_ranks(command_line, everybody):
    process = command_line.start("--env=ring:Endless", "--agents=5", "--dry-run", "--set=dataset.steps=200", ranks=3)
    wait_for(lambda: children(process, *SLEEPER), process)
    started = children(process)
    ranks = [child for child in started if "--dry-run" in child.cmdline() and child.cmdline()[0] == sys.executable]
    assert len(ranks) == 3
    (process if everybody else ranks[0]).send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in errors
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left


def test_a_measurement_that_takes_too_long_is_ended_with_all_that_it_has_started(tmp_path):
    c = configuration("ring:Endless", 5)
    with pytest.raises(measuring.Unmeasured, match="ended after 3 s"):
        measuring._ask(c, "check", 5, str(tmp_path), 3.0)
    wait_until = time.monotonic() + 20
    while any(process.info["cmdline"] == SLEEPER for process in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < wait_until
        time.sleep(0.05)


def quick_to_give_up(monkeypatch, seconds=1.0):
    """The first measurement has all the time that it needs, later ones have next to none."""
    ask, sizes = measuring._ask, []

    def hurried(c, kind, size, folder, limit):
        sizes.append(size)
        return ask(c, kind, size, folder, None if size <= 4 else seconds)

    monkeypatch.setattr(measuring, "_ask", hurried)
    return sizes


def test_smaller_sizes_stand_for_one_that_takes_too_long(monkeypatch):
    c = configuration("ring:Endless", 100, ["--set=ppo.sequence_length=50", "--set=dataset.steps=200"])
    asked = quick_to_give_up(monkeypatch)
    said = []
    costs = measuring.measure(c, domain_of(c), [4, 9, 16], [1], said.append)
    assert asked == [4, 9, 1]
    assert [size for size, _ in costs.evaluate.points] == [4]
    assert said == [
        "measuring joint steps of 4 agents",
        "measuring joint steps of 9 agents",
        "joint steps of 9 agents: ended after 1 s; left out",
        "measuring a block of 1 agents",
    ]


def test_an_estimate_that_cannot_be_made_in_time_says_so(monkeypatch):
    c = configuration("ring:Endless", 5)
    quick_to_give_up(monkeypatch)
    text = estimate.estimate(c, domain_of(c), Layout(5, 1), 2, 1000.0, [].append)
    (line,) = text.splitlines()[1:]
    assert line.startswith("memory and time: not measured (joint steps of 5 agents: ended after 1 s); ")
    assert check(c, domain_of(c), [].append) == "domain ring: not checked with 5 agents: ended after 1 s"


def test_networks_that_this_machine_cannot_hold_are_not_measured(monkeypatch):
    c = configuration()
    monkeypatch.setattr(estimate, "memory_here", lambda: 0.5)
    monkeypatch.setattr(estimate, "measure", None)
    text = estimate.estimate(c, domain_of(c), Layout(4, 1), 2, 1000.0, [].append)
    assert "memory and time: not measured (one agent alone takes a large part of this machine's memory)" in text


def test_time_is_shared_by_what_is_still_to_be_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(measuring.os, "cpu_count", lambda: 2)
    load = [0.5]
    monkeypatch.setattr(measuring.os, "getloadavg", lambda: (load[0], 0, 0))
    budget = measuring.Budget(40.0, 4)
    with budget.share() as first:
        now[0] += 1
    with budget.share() as second:
        now[0] += 13
    load[0] = 8.0  # four processes a core: everything takes four times as long
    with budget.share() as third:
        now[0] += 40
    with budget.share() as last:
        pass
    assert (first, second, third, last) == (10, 13, 4 * 13, 4 * 16)
    with measuring.Budget().share() as unlimited:
        assert unlimited is None


@pytest.mark.parametrize(
    ("env", "agents", "most", "sizes"),
    [
        ("warehouse", 4, 64, [4]),
        ("warehouse", 64, 64, [64]),
        ("warehouse", 81, 64, [16, 64]),
        ("warehouse", 81, 30, [4, 25]),  # 7 and 30 make no square
        ("warehouse", 81, 3, [1]),
        ("ring:Ring", 1000, 64, [16, 64]),
        ("ring:OnlyTwenty", 20, 16, [20]),
    ],
)
def test_measured_systems_are_small_and_such_as_the_domain_can_have(env, agents, most, sizes):
    assert sizes_of_systems(configuration(env, agents), most) == sizes


def test_measured_blocks_are_small():
    assert sizes_of_blocks(16, 16) == [16]
    assert sizes_of_blocks(17, 16) == [4, 16]
    assert sizes_of_blocks(17, 1) == [1]


def test_a_grid_of_given_rows_and_columns_is_never_built_at_another_size():
    c = configuration("traffic", 10_000, SMALL_TRAFFIC, domain={"rows": 100, "columns": 100})
    assert sizes_of_systems(c, 64) == [10_000]


SEES_ACTIONS = ["--set=predictor.sees_actions=true"]


@pytest.mark.parametrize("mode", ["dials", "untrained-dials", "gs"])
@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("warehouse", SMALL),
        ("traffic", SMALL_TRAFFIC),
        ("ring:Ring", []),
        ("ring:Ring", SEES_ACTIONS),
        ("menu:Menu", []),
        ("aim:Aim", []),
        ("cliff:Cliff", []),
    ],
)
def test_memory_is_counted_as_the_arrays_have_it(env, settings, mode):
    from dials_mpi.influence.dataset import InfluenceDataset
    from dials_mpi.influence.predictor import InfluencePredictor
    from dials_mpi.learning.distributions import actions_of
    from dials_mpi.learning.policy import Policy
    from dials_mpi.learning.rollout import Rollout

    c = configuration(env, 4, settings, mode=mode)
    domain = domain_of(c)
    policy = Policy([0], domain.observation_size, actions_of(domain), c.policy, 0).parameters.nbytes
    with_predictor = configuration(env, 4, settings)
    predictor = InfluencePredictor([0], domain.influence, with_predictor.predictor, 0, n_actions=domain.n_actions)
    predictor = predictor.network.parameters.nbytes
    rollout = Rollout.of_domain(domain, 1, c.ppo, c.policy.recurrent_size)
    rollout = sum(array.nbytes for array in rollout.arrays().values())
    episode = InfluenceDataset.empty(1, 1, domain.horizon, domain.influence, domain.action_size)
    episode = sum(array.nbytes for array in episode.arrays().values())
    episodes = -(-with_predictor.dataset.steps // domain.horizon)
    of_predictor = {"dials": 5, "untrained-dials": 1, "gs": 0}[mode]
    expected = {"networks": 4 * policy + of_predictor * predictor, "rollouts": rollout}
    if mode == "dials":
        expected["datasets"] = episodes * episode
    assert owners_memory(c, domain) == pytest.approx({part: size / MIB for part, size in expected.items()})
    joint = {"the joint policies": policy} | ({"the joint rollout": rollout} if mode == "gs" else {})
    assert joint_memory(c, domain) == pytest.approx({part: size / MIB for part, size in joint.items()})
    assert episode_memory(domain) == pytest.approx(episode / MIB)


def test_every_machine_must_hold_what_its_ranks_own():
    """8 agents on 4 owners, rank 0 beside them; the sum of the machines would do in each case."""
    c = configuration(agents=9)
    domain = domain_of(c)
    each, policies = sum(owners_memory(c, domain).values()), 9 * sum(joint_memory(c, domain).values())
    layout = Layout(9, 4)  # 0, 3, 3 and 3 agents

    def machines(**memory):
        return Machines(["a", "a", "b", "b"], 4, memory)

    enough = {"a": 3 * each + policies, "b": 6 * each}
    assert lacking(c, domain, layout, machines(**enough)) is None
    for host in enough:
        line = lacking(c, domain, layout, machines(**{**enough, host: enough[host] - 0.01}))
        assert f"GiB of memory on {host}, " in line
        assert "more ranks on more machines" in line
    assert lacking(c, domain, layout, machines(a=policies, b=1.0), device="cuda:0"), "datasets are not on the GPU"
    datasets = owners_memory(c, domain)["datasets"]
    assert not lacking(c, domain, layout, machines(a=policies + 3 * datasets, b=6 * datasets), device="cuda:0")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "300", "job/step/memory.max": "max"}, 300),
        ("0::/job/step\n", {"job/memory.max": "300", "job/step/memory.max": "200"}, 200),
        ("0::/\n", {"memory.max": "100"}, 100),
        ("4:memory:/job\n1:cpu:/other\n0::/\n", {"memory/job/memory.limit_in_bytes": "50", "cpu/x": "1"}, 50),
        ("4:memory:/not/seen/here\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/job\n", {"job/memory.max": "max"}, None),
        ("0::/job\n", {}, None),
        (None, {}, None),
    ],
)
def test_memory_is_what_the_machine_has_or_what_a_cgroup_leaves_of_it(tmp_path, groups, files, expected):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{int(text) * MIB if text.isdigit() and len(text) < 5 else text}\n")
    assert memory_here(tmp_path) == pytest.approx(expected or psutil.virtual_memory().total / MIB)
