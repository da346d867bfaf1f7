"""The scaling model and its tool: nothing here depends on how fast this machine is."""

import dataclasses
import json
import math
import shutil

import pytest
from conftest import SMALL, TESTS, tool, values_of_mode, without_packages

from dials_mpi.config import parse_override, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.layout import Layout
from dials_mpi.scaling.estimate import phase_lines
from dials_mpi.scaling.model import PHASES, Cluster, Costs, Curve, costly_settings, predict
from dials_mpi.training.plan import plan

HORIZON = 100


def configuration(agents=4, **values):
    settings = {
        "mode": "dials",
        "steps": 4000,
        "ppo": {"copies": 2, "rollout_length": 100, "sequence_length": 100, "minibatch_size": 100},
        "predictor": {"interval": 2000, "epochs": 10, "patience": 4},
        "dataset": {"steps": 1000, "copies": 2},
        "evaluation": {"interval": 1000, "episodes": 4, "copies": 2, "handcoded_episodes": 2},
    }
    layers = [values_of_mode({**settings, **values}["mode"], layer) for layer in (settings, values)]
    return resolve([("--env", {"env": "warehouse"}), *(("test", layer) for layer in layers)], agents)


def costs(c, **changes):
    """Round numbers, for one agent and for all of them."""
    one_each = Curve(((1, 1.0),))
    values = {
        "settings": costly_settings(c),
        "horizon": HORIZON,
        "controllers": 1,
        "start": 3.0,
        "block_start": one_each,
        "learn": one_each,
        "act": one_each,
        "epoch": Curve(((1, 0.01),)),
        "setup": Curve(((1, 0.5),)),
        "collect": Curve(((1, 0.001),)),
        "evaluate": Curve(((1, 0.001),)),
        "reference": Curve(((1, 0.0005),)),
        "policy_bytes": 1_000_000,
        "dataset_bytes": 1000,
        "rollout_bytes": 1000,
        "memory": 200.0,
        "block_memory": Curve(((1, 30.0),)),
        "joint_memory": Curve(((1, 2.0),)),
    }
    return Costs(**{**values, **changes})


ONE_EACH = Cluster(cores=1000)
"""A core for every rank."""


def test_a_small_case_as_worked_out_by_hand():
    """4 agents on 4 owners: 2 rounds, 5 evaluations, 2 of them by collection, 20 updates."""
    c = configuration()
    cluster = Cluster(cores=8, bandwidth=1e9, latency=1e-3)
    p = predict(c, Layout(4, 5, n_collectors=2), costs(c), cluster)
    assert p.counts == {"updates": 20, "rounds": 2, "evaluations": 5, "gathers": 5}
    assert p.seconds["start"] == pytest.approx(3 + 1)
    # 10 episodes in 5 batches of 2, on 2 collectors: 3 turns of 2 × 100 steps of 4 ms, after 2 s for the simulator.
    assert p.seconds["collect"] == pytest.approx(2 * (2 + 3 * 0.8))
    assert p.seconds["aip_training"] == pytest.approx(2 * 7 * 10 * 0.01)
    assert p.seconds["learn"] == pytest.approx(20)
    # Two alone beside 5 s of learning, of 2 + 4 × 100 × 4 ms each; the last shared; the reference, one batch.
    alone, shared, reference = 3.6, 2 + 0.8, 2 + 0.4
    assert p.evaluating == pytest.approx(2 * alone + shared + reference)
    assert p.seconds["evaluate"] == pytest.approx(shared + reference)
    assert p.seconds["gather"] == pytest.approx(5 * (5e-3 + 4e6 / 1e9))
    # Every turn is four transfers; 2 batches of 2 episodes of 4 agents × 100 kB go out of the machine, twice, then one.
    assert p.seconds["scatter"] == pytest.approx(2 * (3 * 4 * 5e-3 + (1.6e6 + 1.6e6 + 0.8e6) / 1e9))
    assert p.total == pytest.approx(sum(p.seconds.values()))
    assert p.agent_steps == 4 * 4000
    assert p.efficiency == pytest.approx(4 * 20 / (8 * p.total))
    dataset = 1000 * 1000 / 2**20
    assert p.memory["rank_0"] == pytest.approx(200 + 8)
    assert p.memory["owner"] == pytest.approx(200 + 30 + dataset)
    policies = 4e6 / 2**20
    assert p.memory["machine"] == pytest.approx(5 * 200 + 4 * (30 + dataset) + 2 * 8 - policies)
    assert "learning" in p.limit


@pytest.mark.parametrize("mode", ["dials", "untrained-dials", "gs"])
@pytest.mark.parametrize(("agents", "ranks", "works"), [(4, 1, False), (4, 5, False), (25, 3, False), (25, 9, True)])
def test_more_cores_are_never_slower(mode, agents, ranks, works):
    c = configuration(agents, mode=mode)
    for collectors in (1, min(3, ranks)) if mode != "gs" else (1,):
        layout = Layout(agents, ranks, works, collectors)
        totals = [predict(c, layout, costs(c), Cluster(cores)).total for cores in (1, 2, 3, 8, 64)]
        assert totals == sorted(totals, reverse=True)


def test_one_rank_per_core_learns_as_long_with_twice_the_agents():
    c, d = configuration(16), configuration(36)
    small, large = (
        predict(x, Layout(x.agents, x.agents + 1), costs(x), Cluster(8, machines=-(-(x.agents + 1) // 8)))
        for x in (c, d)
    )
    assert small.seconds["learn"] == large.seconds["learn"]
    assert large.seconds["collect"] > small.seconds["collect"]


def test_collectors_beyond_the_batches_change_nothing_but_memory():
    c = configuration(25)
    batches = 5
    few, many = (predict(c, Layout(25, 26, n_collectors=n), costs(c), ONE_EACH) for n in (batches, 20))
    for phase in PHASES:
        assert few.seconds[phase] == pytest.approx(many.seconds[phase]), phase
    one = predict(c, Layout(25, 26), costs(c), ONE_EACH)
    assert one.seconds["collect"] > few.seconds["collect"]


@pytest.mark.parametrize("mode", ["dials", "untrained-dials", "gs"])
@pytest.mark.parametrize(("evaluation", "interval"), [(1000, 2000), (2000, 1000), (700, 3000)])
def test_counts_are_those_of_the_plan(mode, evaluation, interval):
    sections = configuration().model_dump(mode="json")
    c = configuration(
        mode=mode,
        evaluation={**sections["evaluation"], "interval": evaluation},
        predictor={**sections["predictor"], "interval": interval},
    )
    segments = plan(c, HORIZON)
    counts = predict(c, Layout(4, 5), costs(c), ONE_EACH).counts
    assert counts["updates"] == segments[-1].stop // c.ppo.rollout_steps
    assert counts["rounds"] == sum(s.round is not None for s in segments)
    evaluated = {s.start for s in segments if s.collection_evaluates}
    evaluated |= {s.stop for s in segments if s.evaluates} | {0}
    assert counts["evaluations"] == len(evaluated)


@pytest.mark.parametrize(
    ("change", "where", "limit"),
    [
        (
            {"evaluate": Curve(((1, 1.0),))},
            {},
            "the evaluation on rank 0 takes longer than the segment it hides behind",
        ),
        ({"collect": Curve(((1, 1.0),))}, {}, "collection"),
        ({"start": 1e4}, {}, "starting the ranks"),
        ({"policy_bytes": 10**13}, {}, "gathering the policies"),
        ({}, {"memory": 201.0}, "memory of rank 0"),
        ({}, {"memory": 250.0}, "memory of a machine"),
    ],
)
def test_what_limits_is_said(change, where, limit):
    c = configuration()
    prediction = predict(c, Layout(4, 5), costs(c, **change), Cluster(8, **where))
    assert prediction.limit.startswith(limit)
    assert prediction.remedy


def test_a_curve_goes_through_what_was_measured_and_on_in_proportion_to_a_line():
    curve = Curve(((1, 3.0), (5, 11.0), (9, 19.0)))  # 1 + 2 · size
    for size in (1, 2, 5, 9, 30):
        assert curve(size) == pytest.approx(1 + 2 * size)
    assert curve(0) == 0
    assert Curve(((4, 8.0),))(100) == pytest.approx(200)
    assert Curve()(7) == 0
    bent = Curve(((1, 1.0), (2, 2.0), (4, 8.0)))
    assert [bent(size) for size in (1, 2, 4)] == [1, 2, 8]
    values = [bent(size) for size in range(4, 50)]
    assert values == sorted(values)


def test_costs_are_read_as_they_were_written_and_only_for_their_settings(tmp_path):
    c = configuration()
    file = tmp_path / "costs.json"
    costs(c).write(file)
    again = Costs.read(file)
    assert again == costs(c)
    again.check(configuration(9, steps=1), "here")
    other = configuration(policy={"recurrent_size": 128, "hidden_sizes": [64], "activation": "tanh"})
    with pytest.raises(UserError, match=r"here: measured with policy.recurrent_size 64, not 128; measure again"):
        again.check(other, "here")
    with pytest.raises(UserError, match=r"here: measured with predictor.sees_actions False, not True; measure again"):
        again.check(configuration(predictor={"sees_actions": True}), "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("learn"), "it lacks 'learn'"),
        (lambda v: v.update(start=-1), "start: -1 is no number from 0 on"),
        (lambda v: v.update(settings=3), "settings: 3 is no mapping"),
        (lambda v: v.update(learn=[[4, 1.0], [2, 1.0]]), "learn: .* no ascending sizes"),
        (lambda v: v.update(learn=[[4, "x"]]), "no costs"),
        (lambda v: v.update(learn=7), "no costs"),
    ],
)
def test_broken_costs_are_named_in_one_line(tmp_path, change, message):
    file = tmp_path / "costs.json"
    values = json.loads(json.dumps(costs(configuration()).as_record()))
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as error:
        Costs.read(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def settings_of(arguments):
    """`--set` and `--steps` of a list of arguments, as the tool takes them."""
    return [argument for argument in arguments if argument.startswith(("--set=", "--steps="))]


def small_costs(tmp_path, **values):
    """A file of made-up costs for the configuration of `SMALL`."""
    layers = [("SMALL", parse_override(a.removeprefix("--set="))) for a in SMALL if a.startswith("--set=")]
    c = resolve([("--env", {"env": "warehouse"}), *layers], 4)
    file = tmp_path / "costs.json"
    costs(c, **values).write(file)
    return file


def test_the_table_has_every_combination_and_says_what_is_extrapolated(tmp_path):
    file = small_costs(tmp_path)
    sizes = ["--agents", 4, 25, "--ranks", 3, 5, "--interval", 400, 800, "--collectors", 1, 2, "--cluster", 64]
    arguments = ["--env=warehouse", "--costs", file, *sizes, *settings_of(SMALL)]
    result = tool("scaling_model.py", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    rows = found["predictions"]
    assert {(r["agents"], r["ranks"], r["interval"]) for r in rows} == {
        (n, ranks, f) for n in (4, 25) for ranks in (3, 5) for f in (400, 800)
    }
    assert all(math.isclose(r["total"], sum(r["seconds"].values())) for r in rows)
    assert {(r["agents"], r["ranks"]) for r in found["cluster"]} == {(1024, 1024), (10_000, 10_000)}
    text = tool("scaling_model.py", *arguments)
    assert "* extrapolated: joint steps of 4 agents from 1 to 1" in text.stdout
    assert text.stdout.count("what limits first: ") == len(found["cluster"])


def test_predicting_from_written_costs_needs_neither_torch_nor_mpi(tmp_path):
    path = without_packages(tmp_path, "torch", "mpi4py")
    (tmp_path / "mine.yaml").write_text("env: warehouse\n")
    arguments = ["--config", tmp_path / "mine.yaml", "--costs", small_costs(tmp_path), *settings_of(SMALL)]
    result = tool("scaling_model.py", *arguments, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert "agent-steps/s" in result.stdout


def test_check_compares_every_phase_of_a_run(small_run, tmp_path):
    result = tool("scaling_model.py", "--check", small_run, "--costs", small_costs(tmp_path))
    assert result.returncode == 0, result.stderr
    shown = [line.split()[0] for line in result.stdout.splitlines()[2:]]
    assert set(PHASES) - {"act"} | {"all"} <= set(shown)


@pytest.mark.parametrize(("charged", "machines", "cores"), [(1, 1, 1), (5, 1, 5), (5, 4, 2), (4, 2, 2), (2, 4, 1)])
def test_a_run_that_is_checked_had_a_core_for_every_rank_that_it_was_charged_for(
    small_run, tmp_path, charged, machines, cores
):
    """Five ranks on four machines are two, two and one: with a core each, two of them would take turns."""
    run = shutil.copytree(small_run, tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["ranks"] = 5 if charged > 1 else 1
    facts["layout"] = str(Layout(4, facts["ranks"]))
    facts["summary"]["core_hours"] = charged * facts["summary"]["wall_seconds"] / 3600
    (run / "run.json").write_text(json.dumps(facts))
    arguments = ["--costs", small_costs(tmp_path), "--machines", machines, "--json"]
    result = tool("scaling_model.py", "--check", run, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["check"][0]["cores"] == cores


def test_costs_are_measured_for_the_run_that_is_checked(small_run):
    result = tool("scaling_model.py", "--check", small_run, "--json")
    assert result.returncode == 0, result.stderr
    phases = json.loads(result.stdout)["check"][0]["phases"]
    for phase in ("start", "collect", "aip_training", "learn", "evaluate", "all"):
        assert phases[phase]["predicted"] > 0, phase
        assert phases[phase]["measured"] > 0, phase


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--env: no domain given"),
        (["--env=warehouse", "--agents", "5"], "5 agents make no m×m grid"),
        (["--check", str(TESTS)], "is no run directory"),
        (["--env=warehouse", "--costs", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--env=warehouse", "--costs", "a.json", "--write", "b.json"], "nothing is measured with --costs"),
    ],
)
def test_bad_arguments_get_one_line(arguments, message):
    result = tool("scaling_model.py", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_a_line_for_every_phase_that_takes_time():
    c = configuration()
    prediction = predict(c, Layout(4, 5), costs(c), ONE_EACH)
    prediction = dataclasses.replace(prediction, seconds={**prediction.seconds, "scatter": 0.0})
    lines = phase_lines(prediction)
    assert len(lines) == sum(seconds > 0 for seconds in prediction.seconds.values())
    assert not any("sending datasets" in line for line in lines)
