"""The offline tools that show what came out of runs: figures, report, comparison; and the sums behind them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SMALL, SMALL_TRAFFIC, TESTS, CommandLine, of_mode
from matplotlib.transforms import Bbox

from dials_mpi.analysis import comparison, figures, published, results
from dials_mpi.runs.metrics import Metrics

TOOLS = TESTS.parent / "tools"
sys.path.insert(0, str(TOOLS))

import compare  # noqa: E402
import plot_learning  # noqa: E402
import plot_scaling  # noqa: E402
import report  # noqa: E402

PLOTS = {"plot_learning": plot_learning, "plot_scaling": plot_scaling}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Small runs as the program leaves them."""
    command_line = CommandLine(tmp_path_factory.mktemp("figures"))
    arguments = {
        "w0": ["--env=warehouse", *SMALL],
        "w1": ["--env=warehouse", "--seed=1", *SMALL],
        "gs": ["--env=warehouse", "--mode=gs", *of_mode("gs", SMALL)],
        "t0": ["--env=traffic", *SMALL_TRAFFIC],
    }
    for name, options in arguments.items():
        outcome = command_line(*options, "--agents=4", f"--name={name}")
        assert outcome.returncode == 0, outcome.stderr
    return {name: command_line.folder / "runs" / name for name in arguments}


@pytest.fixture
def copy(runs, tmp_path):
    """Copies a run, to be changed."""

    def make(name: str, to: str) -> Path:
        return Path(shutil.copytree(runs[name], tmp_path / to))

    return make


OLDEST = {"oldest": (13.0, 0.3, [12.5, 13.5])}
"""A hand-coded controller: mean return, its standard error, and what it earns at each place."""


def made_up(
    folder: Path, seed: int, returns: list[float], steps=(0, 400, 800), references=OLDEST, facts=None, **changes
) -> Path:
    """A run directory with these mean returns of two agents, and with cross-entropies 1.4 → 0.5 and 0.6 → 0.4.

    The agents earn one less and one more than the mean. `changes` are to its configuration, `facts` go to run.json.
    """
    folder.mkdir()
    settings = {"env": "warehouse", "agents": 2, "mode": "dials", "seed": seed, "steps": 800}
    settings |= {"predictor": {"interval": 400, "epochs": 10}, "ppo": {"clip": 0.2}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | changes))
    (folder / "run.json").write_text(json.dumps({"state": "finished"} | (facts or {})))
    metrics = Metrics(folder)
    for controller, (value, error, places) in references.items():
        figures = {"mean_return": value, "standard_error": error, "per_agent": {"mean_return": places}}
        metrics.write(0, "reference", 1.0, controller=controller, **figures)
    for step, value in zip(steps, returns, strict=True):
        agents = {"mean_return": [value - 1, value + 1]}
        metrics.write(step, "evaluate", step / 100, mean_return=value, standard_error=0.2, per_agent=agents)
    for step, before, after in ((0, 1.4, 0.5), (400, 0.6, 0.4)):
        pair = {"cross_entropy_before": before, "cross_entropy_after": after}
        agents = {key: [value, value] for key, value in pair.items()}
        metrics.write(step, "aip", step / 100, round=step // 400, **pair, per_agent=agents)
    metrics.close()
    return folder


def open_group(*folders: Path) -> results.Group:
    (group,), _ = results.group_runs(results.open_runs(folders))
    return group


# Grouping and averages.


def test_seeds_are_averaged_with_their_standard_error(tmp_path):
    values = ([1.0, 5.0, 9.0], [1.0, 6.0, 12.0], [4.0, 7.0, 12.0])
    group = open_group(*(made_up(tmp_path / str(seed), seed, list(v)) for seed, v in enumerate(values)))
    curve = results.average(group.runs, "evaluate", "mean_return")
    assert group.seeds == [0, 1, 2]
    assert group.label == "DIALS, F = 400"
    assert curve.steps.tolist() == [0, 400, 800]
    assert curve.mean.tolist() == [2.0, 6.0, 11.0]
    # Deviations -1, -1, 2; -1, 0, 1; -2, 1, 1: variances 3, 1, 3.
    assert curve.standard_error == pytest.approx([1.0, np.sqrt(1 / 3), 1.0])
    assert curve.hours == pytest.approx(np.array([0, 4, 8]) / 3600)
    steps, agents = results.average_by_agent(group.runs, "evaluate", "mean_return")
    assert steps.tolist() == [0, 400, 800]
    assert agents[-1].tolist() == [10.0, 12.0]
    assert results.references(group.runs)["oldest"] == pytest.approx((13.0, 0.3 / np.sqrt(3)))


def test_only_steps_that_all_seeds_have_are_averaged(tmp_path):
    group = open_group(
        made_up(tmp_path / "a", 0, [1.0, 5.0, 9.0]),
        made_up(tmp_path / "b", 1, [1.0, 9.0], steps=(0, 400)),
        made_up(tmp_path / "c", 2, [3.0, 0.0, 7.0], steps=(0, 300, 400)),
    )
    curve = results.average(group.runs, "evaluate", "mean_return")
    assert curve.steps.tolist() == [0, 400]
    assert curve.mean.tolist() == [5 / 3, 7.0]
    (note,) = results.shortened_notes(group)
    assert "up to step 400" in note


def test_a_step_that_a_run_was_evaluated_at_twice_counts_once_as_it_was_at_first(tmp_path):
    group = open_group(
        made_up(tmp_path / "a", 0, [1.0, 5.0, 7.0, 9.0], steps=(0, 400, 400, 800)),
        made_up(tmp_path / "b", 1, [3.0, 7.0, 11.0]),
    )
    curve = results.average(group.runs, "evaluate", "mean_return")
    assert curve.steps.tolist() == [0, 400, 800]
    assert curve.mean.tolist() == [2.0, 6.0, 10.0]
    assert curve.standard_error.tolist() == pytest.approx([1.0, 1.0, 1.0])  # deviations ±1: √(2 / 1 / 2)


def test_the_standard_error_of_many_figures_at_once():
    """Over axis 0: 2, 4, 4, 6 have mean 4 and squares 4 + 0 + 0 + 4; √(8 / 3 / 4). 1, 1, 1, 5: 1 + 1 + 1 + 9."""
    values = np.array([[2, 1], [4, 1], [4, 1], [6, 5]], float)
    assert results.standard_error(values) == pytest.approx([np.sqrt(2 / 3), 1.0])
    assert results.standard_error(values[:, 0]) == pytest.approx(np.sqrt(2 / 3))
    assert np.isnan(results.standard_error(values[:1])).tolist() == [True, True]


def test_references_are_averaged_over_seeds_each_counted_once(tmp_path):
    """Plan: 12 ± 0.3 and 14 ± 0.4 are 13 ± √(0.09 + 0.16) / 2. Runs of one seed play the same episodes."""
    one, other = {"plan": (12.0, 0.3, [12.0, 12.0])}, {"plan": (14.0, 0.4, [14.0, 14.0])}
    folders = [
        made_up(tmp_path / "a", 0, [1, 2, 3], references=one | {"rest": (5.0, 0.5, [5.0, 5.0])}),
        made_up(tmp_path / "b", 1, [1, 2, 3], references=other),
        made_up(tmp_path / "c", 1, [1, 2, 3], references=other, mode="gs"),
    ]
    found = results.references(results.open_runs(folders))
    assert found == {"plan": pytest.approx((13.0, 0.25)), "rest": pytest.approx((5.0, 0.5))}


def test_speed_time_and_memory_of_a_run_by_hand(tmp_path):
    """800 steps of two agents in half an hour: 1600 / 1800 s. The last record is of second 8."""
    ended = {"summary": {"wall_seconds": 1800.0, "core_hours": 1.5, "memory_mib_per_rank": [300.0, 100.0, 200.0]}}
    folders = {
        "ended": made_up(tmp_path / "ended", 0, [1, 2, 3], facts=ended),
        "resumed": made_up(tmp_path / "resumed", 1, [1, 2, 3], facts=ended | {"resumed": [{}]}),
        "died": made_up(tmp_path / "died", 2, [1, 2, 3]),
        "empty": made_up(tmp_path / "empty", 3, [], steps=()),
    }
    runs = dict(zip(folders, results.open_runs(folders.values()), strict=True))
    assert results.reached(runs["ended"]) == 800
    assert results.hours(runs["ended"]) == 0.5
    assert results.speed(runs["ended"]) == pytest.approx(1600 / 1800)
    assert results.cores(runs["ended"]) == 3
    assert results.memory(runs["ended"]) == [300.0, 100.0, 200.0]
    # A resumed run's summary is of its last part; records have the time of all of it.
    assert results.hours(runs["resumed"]) == pytest.approx(8 / 3600)
    assert results.speed(runs["died"]) == pytest.approx(1600 / 8)
    assert results.memory(runs["died"]) is results.cores(runs["died"]) is None


def test_a_single_seed_has_no_standard_error(tmp_path):
    curve = results.average(open_group(made_up(tmp_path / "a", 0, [1, 2, 3])).runs, "evaluate", "mean_return")
    assert np.isnan(curve.standard_error).all()
    assert curve.n_seeds == 1


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    folders = [
        made_up(tmp_path / "a", 0, [1, 2, 3]),
        made_up(tmp_path / "b", 1, [1, 2, 3], ppo={"clip": 0.1}),
        made_up(tmp_path / "c", 0, [1, 2, 3], predictor={"interval": 200_000, "epochs": 10}),
        made_up(tmp_path / "d", 0, [1, 2, 3], mode="gs", predictor={"interval": 7, "epochs": 3}),
        made_up(tmp_path / "e", 1, [1, 2, 3], mode="gs"),
        made_up(tmp_path / "f", 0, [1, 2], steps=(0, 400)),
        made_up(tmp_path / "g", 2, [1, 2, 3], evaluation={"episodes": 7}),
        made_up(tmp_path / "h", 3, [1, 2, 3], parallel={"collectors": 2, "coordinator_works": True}),
        made_up(tmp_path / "i", 4, [1, 2, 3], parallel={"collectors": "auto", "coordinator_works": False}),
    ]
    groups, notes = results.group_runs(results.open_runs(folders))
    assert [(group.label, [run.name for run in group.runs]) for group in groups] == [
        ("GS", ["d", "e"]),  # which has no AIPs
        ("DIALS, F = 400, clip = 0.1", ["b"]),
        ("DIALS, F = 400, clip = 0.2", ["a", "g", "h", "i"]),
        ("DIALS, F = 200K", ["c"]),
    ]
    assert len(notes) == 1, "two runs of one seed are one"
    assert "seed 0 stands for" in notes[0]


def test_groups_are_shown_in_the_order_of_their_methods_and_intervals(tmp_path):
    """Those that learn on the global simulator first; a method that is not known last."""
    often, seldom = {"interval": 7}, {"interval": 9_000}
    folders = [
        made_up(tmp_path / "a", 0, [1, 2, 3], mode="of-tomorrow"),
        made_up(tmp_path / "b", 0, [1, 2, 3], mode="untrained-dials"),
        made_up(tmp_path / "c", 0, [1, 2, 3], predictor=seldom),
        made_up(tmp_path / "d", 0, [1, 2, 3], predictor=often),
        made_up(tmp_path / "e", 0, [1, 2, 3], mode="gs"),
        made_up(tmp_path / "f", 0, [1, 2, 3], mode="gs", agents=3),
        made_up(tmp_path / "g", 0, [1, 2, 3], mode="dppo"),
    ]
    groups, _ = results.group_runs(results.open_runs(folders))
    assert [(group.agents, group.label) for group in groups] == [
        (2, "GS"),
        (2, "DPPO"),
        (2, "DIALS, F = 7"),
        (2, "DIALS, F = 9K"),
        (2, "untrained-DIALS"),
        (2, "of-tomorrow"),
        (3, "GS"),
    ]


def test_groups_that_differ_in_much_are_called_by_their_runs(tmp_path):
    folders = [
        made_up(tmp_path / name, 0, [1, 2, 3], ppo={"clip": clip, "discount": clip, "gae_lambda": clip})
        for name, clip in (("a", 0.1), ("b", 0.2))
    ]
    groups, _ = results.group_runs(results.open_runs(folders))
    assert sorted(group.label for group in groups) == ["DIALS, F = 400: a", "DIALS, F = 400: b"]


def test_mean_over_training_is_the_area_under_the_curve():
    assert results.mean_over_training(np.array([0, 10, 40]), np.array([0.0, 2.0, 4.0])) == (10 + 90) / 40
    assert results.mean_over_training(np.array([10]), np.array([3.0])) == 3.0
    assert results.mean_over_training(np.array([100, 300]), np.array([2.0, 5.0])) == 3.5, "wherever it begins"


POOR, BEST = (12.0, 0.3, [4.0, 20.0]), (12.5, 0.3, [11.5, 13.5])


@pytest.mark.parametrize(
    ("references", "share"),
    [
        ({"plan": (13.0, 0.3, [12.0, 14.0])}, 0.0),  # equal at both places: nobody is above himself
        ({"plan": (15.95, 0.3, [11.9, 20.0])}, 0.5),  # the first agent, although both are below the plan's mean
        ({"poor": POOR, "best": BEST}, 1.0),  # places of the controller with the higher mean, not of each place's best
        ({"best": BEST, "poor": POOR}, 1.0),
        ({}, None),
    ],
)
def test_agents_are_compared_with_the_best_controller_at_their_own_places(tmp_path, references, share):
    """The agents of the last evaluation earn 12 and 14, of the one before 5 and 7."""
    folder = made_up(tmp_path / "run", 0, [1.0, 6.0, 13.0], references=references)
    (run,) = results.open_runs([folder])
    assert results.share_above_reference(run) == share


def test_without_evaluations_nobody_is_above_anything(tmp_path):
    (run,) = results.open_runs([made_up(tmp_path / "run", 0, [], steps=())])
    assert results.share_above_reference(run) is None


def test_short_numbers():
    assert [results.short(n) for n in (0, 400, 200_000, 403_200, 1_500_000)] == ["0", "400", "200K", "403.2K", "1.5M"]


def test_published_runtime_is_that_of_the_paper():
    # Six hours against more than ten days, section 5: 100 lights, 4M steps, F = 1M.
    assert published.runtime_hours("traffic", "dials", 100, 4_000_000, 1_000_000) == pytest.approx(5.94, abs=0.01)
    assert published.runtime_hours("traffic", "gs", 100, 4_000_000, None) == pytest.approx(261, abs=0.1)
    assert published.runtime_hours("ring", "gs", 100, 4_000_000, None) is None


# Comparison.


def test_the_paired_t_test_has_the_quantiles_of_the_table():
    for freedom, quantile in {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 10: 2.22814}.items():
        noise = np.random.default_rng(freedom).normal(size=freedom + 1)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        t, p = comparison.paired_t(noise - quantile / np.sqrt(freedom + 1))
        assert t == pytest.approx(-quantile)
        assert p == pytest.approx(0.05, abs=1e-6)


def test_the_statistics_of_a_comparison_by_hand(tmp_path):
    a = [made_up(tmp_path / f"a{seed}", seed, [0, 5, last]) for seed, last in enumerate((10.0, 11.0, 12.0))]
    b = [made_up(tmp_path / f"b{seed}", seed, [0, 5, last]) for seed, last in enumerate((11.0, 13.0, 15.0))]
    found, notes = comparison.compare(results.open_runs(a), results.open_runs(b))
    final = next(c for c in found if c.name == "final return")
    assert notes == []
    assert final.pairs.tolist() == [1.0, 2.0, 3.0]
    assert final.change == pytest.approx(2 / 11)
    assert final.worse_by == pytest.approx(-2 / 11)
    # t = 2 / (1 / √3); with two degrees of freedom p = 1 - t / √(2 + t²).
    t, p = comparison.paired_t(final.pairs)
    assert t == pytest.approx(2 * np.sqrt(3))
    assert p == pytest.approx(1 - 2 * np.sqrt(3) / np.sqrt(14))
    assert comparison.sign_flips(final.pairs) == 2 / 8
    assert "not below 0.250 with so few" in final.verdict
    training = next(c for c in found if c.name == "mean return over training")
    assert training.a.tolist() == [5.0, 5.25, 5.5]
    memory = next(c for c in found if c.name.startswith("memory"))
    assert np.isnan(memory.change)


def test_pairs_are_of_one_seed_whatever_the_order_and_number_of_runs(tmp_path):
    a = [made_up(tmp_path / f"a{seed}", seed, [0, 0, last]) for seed, last in ((2, 16.0), (0, 10.0), (1, 12.0))]
    b = [made_up(tmp_path / f"b{seed}", seed, [0, 0, last]) for seed, last in ((3, 50.0), (2, 15.0), (1, 13.0))]
    found, notes = comparison.compare(results.open_runs(a), results.open_runs(b))
    final = next(c for c in found if c.name == "final return")
    # Seeds 1 and 2: 12 → 13 and 16 → 15, so the means of both sides are 14.
    assert final.pairs.tolist() == [1.0, -1.0]
    assert (final.a.tolist(), final.b.tolist()) == ([12.0, 16.0], [13.0, 15.0])
    assert final.change == 0
    assert "final return: only seeds on both sides are compared: 1, 2" in notes
    for sides in ((a, b[1:]), (b[1:], a), (a, b[2:])):  # one side has all that the other one has, and more
        found, notes = comparison.compare(*map(results.open_runs, sides))
        final = next(c for c in found if c.name == "final return")
        assert len(final.a) == len(final.b) == len(final.pairs) == min(map(len, sides))
        seeds = "1, 2" if len(final.pairs) == 2 else "1"
        assert f"final return: only seeds on both sides are compared: {seeds}" in notes


def test_runs_without_any_evaluation_have_no_returns_to_compare(tmp_path):
    sides = [results.open_runs([made_up(tmp_path / name, 0, [], steps=())]) for name in "ab"]
    final = next(c for c in comparison.compare(*sides)[0] if c.name == "final return")
    assert len(final.a) == len(final.b) == 0
    assert np.isnan(final.change)


def test_of_many_pairs_a_sample_of_signs_is_flipped_and_what_was_seen_is_in_it():
    """All of thirty are better: of 100,000 patterns none but the one that was seen is as good, and p is never 0."""
    assert comparison.sign_flips(np.arange(1.0, 31.0)) == 1e-5


def test_what_is_better_for_each_figure():
    assert {name: higher for name, (_, higher, _) in comparison.FIGURES.items()} == {
        "final return": True,
        "mean return over training": True,
        "last cross-entropy": False,
        "speed": True,
        "time": False,
        "memory of all ranks": False,
        "memory of the largest rank": False,
    }


def test_every_figure_of_a_comparison_by_hand(tmp_path):
    """B went further than A, whose last evaluation at step 400 is where returns are compared."""
    a = made_up(tmp_path / "a", 0, [1.0, 3.0], steps=(0, 400), facts=laid(THREE, hours=1, cores=3))
    b = made_up(tmp_path / "b", 0, [2.0, 4.0, 9.0], facts=laid(THREE, hours=2, cores=3))
    found, notes = comparison.compare(results.open_runs([a]), results.open_runs([b]))
    figures = {c.name: (c.a.tolist(), c.b.tolist(), c.change, c.worse_by) for c in found}
    assert list(figures) == list(comparison.FIGURES)
    assert figures["final return"] == ([3.0], [4.0], pytest.approx(1 / 3), pytest.approx(-1 / 3))
    assert figures["mean return over training"] == ([2.0], [3.0], 0.5, -0.5)
    assert figures["last cross-entropy"] == ([0.4], [0.4], 0.0, 0.0)
    # 400 and 800 steps of two agents in one and two hours.
    assert figures["speed"] == (pytest.approx([800 / 3600]), pytest.approx([1600 / 7200]), 0.0, 0.0)
    assert figures["time"] == ([1.0], [2.0], 1.0, 1.0)
    assert figures["memory of all ranks"] == ([300.0], [600.0], 1.0, 1.0)
    assert figures["memory of the largest rank"] == ([100.0], [200.0], 1.0, 1.0)
    assert notes == ["returns are compared up to step 400, which is as far as every run was evaluated"]


@pytest.mark.parametrize(
    ("a", "b", "paired", "change"),
    [
        ([10.0], [12.0], True, 0.2),
        ([-10.0], [-12.0], True, -0.2),  # lower, of a figure below 0
        ([8.0, 12.0], [9.0, 14.0], True, 0.15),  # (1 + 2) / 2 of 10
        ([8.0, 12.0], [9.0, 9.0, 12.0], False, 0.0),  # 10 and 10
        ([0.0], [3.0], True, np.inf),
        ([0.0], [-3.0], True, -np.inf),
        ([0.0], [0.0], True, 0.0),
        ([1.0], [], False, np.nan),
    ],
)
def test_changes_are_relative_to_the_mean_of_a(a, b, paired, change):
    pairs = np.subtract(b, a) if paired else np.zeros(0)
    higher, lower = (comparison.Comparison("x", "", h, np.array(a), np.array(b), pairs) for h in (True, False))
    assert higher.change == pytest.approx(change, nan_ok=True)
    assert higher.worse_by == pytest.approx(-change, nan_ok=True)
    assert lower.worse_by == pytest.approx(change, nan_ok=True)


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([], "no seed on both sides: no test"),
        ([1.0], "1 pair: no test"),
        ([2.0, 2.0], "2 pairs: all differ by the same"),
        # Mean 2, variance 2: t = 2 / √(2 / 2), p = 1 - 2 atan(2) / π = 0.295 with one degree of freedom. Signs: sums of
        # 4, 2, -2 and -4, of which two are as large as 4.
        ([1.0, 3.0], "2 pairs: t = 2.00, p = 0.295; sign flips p = 0.500 (not below 0.500 with so few)"),
        # Mean 0: nothing.
        (
            [-1.0, 1.0, -2.0, 2.0, 0.0],
            "5 pairs: t = 0.00, p = 1.000; sign flips p = 1.000 (not below 0.062 with so few)",
        ),
        ([-1.0, 1.0, -2.0, 2.0, -3.0, 3.0], "6 pairs: t = 0.00, p = 1.000; sign flips p = 1.000"),
    ],
)
def test_verdicts_by_hand(pairs, verdict):
    n = len(pairs)
    c = comparison.Comparison("x", "", True, np.zeros(n), np.array(pairs), np.array(pairs))
    assert c.verdict == verdict


def test_what_compare_prints_by_hand(tmp_path, capsys):
    """9, 10, 14 → 11, 14, 14: means 11 and 13, errors √(14 / 2 / 3) and √(6 / 2 / 3); pairs 2, 4, 0, √(8 / 2 / 3)."""
    sides = [
        [str(made_up(tmp_path / f"{side}{seed}", seed, [0, 0, last])) for seed, last in enumerate(returns)]
        for side, returns in (("a", (9.0, 10.0, 14.0)), ("b", (11.0, 14.0, 14.0)))
    ]
    assert compare.main(["--a", *sides[0], "--b", *reversed(sides[1]), "--only", "final return"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("final return")]
    values = "11.00 ± 1.53 13.00 ± 1.00 2.000 ± 1.155 +18.2 % better"
    assert " ".join(line.split()) == f"final return {values}"


def test_sign_flips_count_all_patterns_or_a_sample_of_them():
    assert comparison.sign_flips(np.array([1.0, -1.0])) == 1.0
    assert comparison.sign_flips(np.array([3.0, 1.0, -1.0])) == 6 / 8  # sums 3, 5, 1, 3 and their opposites
    assert comparison.sign_flips(np.ones(20)) == pytest.approx(2 / 2**20, abs=1e-4)


def test_unpaired_sides_and_few_seeds_are_said_to_tell_nothing(tmp_path, capsys):
    folders = [made_up(tmp_path / str(seed), seed, [0, 5, 9]) for seed in (0, 1)]
    assert compare.main([str(folder) for folder in folders]) == 0
    out = capsys.readouterr().out
    assert "no seed on both sides: no test" in out
    assert "Fewer than three seeds" in out


def test_compare_fails_if_a_figure_got_worse_by_more_than_that(tmp_path, capsys):
    a = made_up(tmp_path / "a", 0, [0, 5, 10])
    b = made_up(tmp_path / "b", 0, [0, 5, 9], ppo={"clip": 0.3})
    only = ["--only", "final return"]
    assert compare.main([str(a), str(b), *only, "--fail-if-worse", "10.1"]) == 0
    assert compare.main([str(a), str(b), *only, "--fail-if-worse", "9.9"]) == 1
    out, error = capsys.readouterr()
    assert error == "compare: final return is worse by 10.0 %\n"
    assert "ppo.clip  0.2 → 0.3" in out
    assert compare.main([str(b), str(a), "--fail-if-worse", "0"]) == 0
    empty = made_up(tmp_path / "c", 0, [], steps=())
    assert compare.main([str(a), str(empty), *only, "--fail-if-worse", "9"]) == 1, "a run without figures is no success"


ONE = {"ranks": 1, "layout": "one process: global simulator and 2 agents"}
THREE = {"ranks": 3, "layout": "3 ranks: rank 0 the global simulator, ranks 1-2 1 of 2 agents each"}
OF_A_LAYOUT = "speed, time, memory of all ranks, memory of the largest rank"


def laid(layout: dict, hours: float = 1.0, cores: int = 1, **facts) -> dict:
    """run.json of a run that took so long on so many cores; each rank needed 100 MiB for each hour."""
    memory = [100.0 * hours] * layout["ranks"]
    summary = {"wall_seconds": 3600 * hours, "core_hours": cores * hours, "memory_mib_per_rank": memory}
    return {**layout, "summary": summary, **facts}


def test_what_depends_on_the_layout_is_neither_better_nor_worse_on_another_one(tmp_path, capsys):
    a = made_up(tmp_path / "a", 0, [1, 5, 9], facts=laid(ONE))
    alike = made_up(tmp_path / "alike", 0, [1, 5, 9], facts=laid(ONE, hours=2))
    other = made_up(tmp_path / "other", 0, [1, 5, 9], facts=laid(THREE, hours=2, cores=3))
    assert compare.main([str(a), str(alike), "--fail-if-worse", "0"]) == 1
    out, error = capsys.readouterr()
    assert out.count("  worse") == 4
    assert "layout" not in out + error
    names = ["speed", "time", "memory of all ranks", "memory of the largest rank"]
    assert error.splitlines() == [
        f"compare: {name} is worse by {by} %" for name, by in zip(names, (50.0, 100.0, 100.0, 100.0), strict=True)
    ]

    assert compare.main([str(a), str(other), "--fail-if-worse", "0"]) == 0
    out, error = capsys.readouterr()
    said = (
        f"compare: note: {OF_A_LAYOUT}: neither side is better or worse, as their layouts differ "
        f"(A: {ONE['layout']}; B: {THREE['layout']})"
    )
    assert error == f"{said}; --fail-if-worse does not count them\n"
    assert f"layout  {ONE['layout']} → {THREE['layout']}" in out
    assert out.count("  other layout") == 4
    assert "worse" not in out
    assert "better" not in out
    assert compare.main([str(other), str(a)]) == 0
    assert "--fail-if-worse" not in capsys.readouterr().err

    lower = made_up(tmp_path / "lower", 0, [1, 5, 8], facts=laid(THREE))
    assert compare.main([str(a), str(lower), "--fail-if-worse", "5"]) == 1, "returns depend on no layout"
    assert "compare: final return is worse by 11.1 %" in capsys.readouterr().err
    assert compare.main([str(a), str(lower), "--fail-if-worse", "5", "--only", "last cross-entropy"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("a", "b", "texts"),
    [
        ([laid(ONE)], [laid(ONE, cores=2)], None),  # charged for what it can use, and by an older version for all
        ([laid(THREE, cores=3)], [laid(THREE, cores=8)], None),
        ([laid(THREE, cores=2)], [laid(THREE, cores=3)], ("THREE, on 2 cores", "THREE")),
        ([laid(ONE)], [laid(ONE, resumed=[ONE])], None),
        ([laid(ONE, resumed=[THREE, ONE])], [laid(ONE)], ("ONE, then THREE", "ONE")),
        ([laid(THREE, cores=3)], [laid(ONE, resumed=[THREE], cores=3)], ("THREE", "ONE, then THREE")),
        ([laid(ONE), laid(THREE, cores=3)], [laid(ONE), laid(THREE, cores=3)], None),
        ([laid(ONE), laid(THREE, cores=3)], [laid(THREE, cores=3), laid(ONE)], ("ONE; THREE", "THREE; ONE")),
        ([{}], [{}], None),
        ([{}], [laid(ONE)], ("not known", "ONE")),
    ],
)
def test_layouts_are_those_of_all_sessions_and_compared_seed_by_seed(tmp_path, a, b, texts):
    sides = [
        results.open_runs(made_up(tmp_path / f"{side}{seed}", seed, [1, 2, 3], facts=f) for seed, f in enumerate(facts))
        for side, facts in (("a", a), ("b", b))
    ]
    if texts:
        texts = tuple(text.replace("ONE", ONE["layout"]).replace("THREE", THREE["layout"]) for text in texts)
    assert comparison.layouts_of(*sides) == texts
    assert [c.name for c in comparison.compare(*sides)[0] if c.layouts] == (OF_A_LAYOUT.split(", ") if texts else [])


def test_layouts_without_a_seed_in_common_are_compared_as_they_are(tmp_path):
    a, b, c = (
        results.open_runs([made_up(tmp_path / name, seed, [1, 2, 3], facts=laid(layout, cores=3))])
        for name, seed, layout in (("a", 0, ONE), ("b", 1, ONE), ("c", 2, THREE))
    )
    assert comparison.layouts_of(a, b) is None
    assert comparison.layouts_of(a, c) == (ONE["layout"], THREE["layout"])


def test_a_figure_that_is_lost_is_a_failure_on_any_layout(tmp_path, capsys):
    a = made_up(tmp_path / "a", 0, [1, 5, 9], facts=laid(ONE))
    b = made_up(tmp_path / "b", 0, [1, 5, 9], facts=THREE)
    assert compare.main([str(a), str(b), "--fail-if-worse", "5"]) == 1
    assert "compare: memory of all ranks: A has it, B does not\n" in capsys.readouterr().err


def test_compare_on_real_runs(runs, capsys):
    assert compare.main([str(runs["w0"]), str(runs["gs"])]) == 0
    out = capsys.readouterr().out
    assert "mode  dials → gs" in out
    for name in comparison.FIGURES:
        assert name in out


# Figures.


@pytest.mark.parametrize(
    ("tool", "names", "files"),
    [
        ("plot_learning", ["w0", "w1", "gs"], {"learning-warehouse-4", "cross-entropy-warehouse-4"}),
        ("plot_learning", ["t0"], {"learning-traffic-4", "cross-entropy-traffic-4"}),
        (
            "plot_scaling",
            ["w0", "w1", "gs", "t0"],
            {"scaling-warehouse", "phases-warehouse", "scaling-traffic", "phases-traffic"},
        ),
    ],
)
def test_plots_of_real_runs(runs, tmp_path, capsys, tool, names, files):
    paths = [str(runs[name]) for name in names]
    assert PLOTS[tool].main([*paths, "--out", f"{tmp_path}/figures/", "--published"]) == 0
    made = {file.name for file in (tmp_path / "figures").iterdir()}
    assert made == {f"{name}.{kind}" for name in files for kind in ("png", "pdf")}
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == len(made)
    assert error == ""


def test_out_is_a_folder_or_the_beginning_of_a_name(tmp_path):
    run = str(made_up(tmp_path / "a", 0, [1, 2, 3]))
    assert plot_learning.main([run]) == 0
    assert (tmp_path / "a" / "figures" / "learning-warehouse-2.png").exists()
    assert plot_learning.main([run, "--out", str(tmp_path / "fig3")]) == 0
    assert (tmp_path / "fig3-learning-warehouse-2.pdf").exists()


def test_a_sweep_over_f_has_a_figure_of_its_own(tmp_path):
    folders = [
        made_up(tmp_path / str(f), 0, [1, 2, 3], predictor={"interval": f, "epochs": 10}) for f in (400, 200_000)
    ]
    groups, _ = results.group_runs(results.open_runs(folders))
    labels = [text.get_text() for text in figures.sweep(groups).legends[0].get_texts()]
    assert labels == ["DIALS, F = 400 (1 seed)", "DIALS, F = 200K (1 seed)"]
    assert figures.sweep(groups[:1]) is None


def test_figures_fit_a_column_can_be_read_and_keep_legend_and_data_apart(runs):
    groups, _ = results.group_runs(results.open_runs([runs[name] for name in ("w0", "w1", "gs")]))
    dials = next(group for group in groups if group.mode == "dials")
    made = {
        "learning": figures.learning(groups, with_published=True),
        "cross-entropy": figures.cross_entropy(groups),
        "scaling": figures.scaling(groups, with_published=True),
        "phases": figures.phases(groups),
        "by agent": figures.by_agent(dials),
    }
    for name, figure in made.items():
        assert figure.get_figwidth() == figures.WIDTH
        figure.canvas.draw()
        texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 7, name
        boxes = Bbox.union([axes.get_tightbbox() for axes in figure.axes])
        assert boxes.x0 >= -1, name
        assert boxes.x1 <= figure.bbox.x1 + 1, name
        for legend in figure.legends:
            assert legend.get_window_extent().y0 >= max(axes.bbox.y1 for axes in figure.axes), name
            assert legend.get_window_extent().x1 <= figure.bbox.x1, name


def test_many_curves_leave_room_for_themselves(tmp_path):
    folders = [made_up(tmp_path / str(f), 0, [1, 2, 3], predictor={"interval": f, "epochs": 10}) for f in range(1, 25)]
    groups, _ = results.group_runs(results.open_runs(folders))
    figure = figures.learning(groups)
    figure.canvas.draw()
    assert all(axes.bbox.height > 1.2 * figure.dpi for axes in figure.axes)


def test_curves_differ_in_more_than_their_colour(tmp_path):
    folders = [
        made_up(tmp_path / str(f), 0, [1, 2, 3], predictor={"interval": f, "epochs": 10}) for f in (1, 2, 3, 4, 5)
    ]
    groups, _ = results.group_runs(results.open_runs(folders))
    lines = figures.sweep(groups).axes[0].get_lines()
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 5


# The report.


class Page(HTMLParser):
    """What a browser would load, and the pictures' texts."""

    def __init__(self, html: str):
        super().__init__()
        self.sources, self.pictures, self.headings, self.open = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[name] for name in ("src", "href", "srcset", "data", "poster") if name in values]
        if tag == "img":
            self.pictures.append(values.get("alt"))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_report(*arguments: object) -> tuple[str, Page]:
    *runs, out = map(str, arguments)
    assert report.main([*runs, "--out", out]) == 0
    html = Path(out).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert all(source.startswith("data:image/") for source in page.sources), "nothing is loaded from elsewhere"
    assert not re.search(r"https?://|@import|url\(", html)
    assert page.pictures
    assert all(page.pictures), "every picture has an alternative text"
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False)), "no level is left out"
    return html, page


def test_the_report_of_several_runs(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_FILM_STEPS", 3)
    html, page = read_report(runs["w0"], runs["w1"], runs["gs"], tmp_path / "r.html")
    assert "All 3 runs have finished." in html
    assert "standard error over 2 seeds" in html
    assert "data:image/gif" in html, "an episode"
    assert '<tr class="differs"><th scope="row">mode</th><td>dials</td><td>dials</td><td>gs</td></tr>' in html
    assert "--set=ppo.copies=4" in html
    assert any("Cross-entropy" in text for text in page.pictures)


def test_the_report_of_a_traffic_run_is_beside_it_by_default(runs, copy):
    folder = copy("t0", "t")
    assert report.main([str(folder), "--episode", "still"]) == 0
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "DIALS on traffic, 4 agents" in html
    assert "step 50 of an episode" in html


def test_what_runs_are_called_is_no_html(tmp_path):
    folder = made_up(tmp_path / "<b>&", 0, [1, 2, 3], env="<script>")
    html, _ = read_report(folder, tmp_path / "r.html")
    assert "<script" not in html
    assert "&lt;b&gt;&amp;" in html


# Runs that have not ended well, and directories that are none.


def still_going(folder: Path) -> None:
    """Cut in the middle of the second evaluation's line, as a reader may find it."""
    facts = json.loads((folder / "run.json").read_text())
    facts.pop("summary")
    (folder / "run.json").write_text(json.dumps({**facts, "state": "running"}))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = [number for number, line in enumerate(lines) if '"evaluate"' in line][2]
    (folder / "metrics.jsonl").write_text("".join(lines[:second]) + lines[second][:40])


def dead(folder: Path) -> None:
    still_going(folder)
    for item in folder.rglob("*"):
        os.utime(item, (time.time() - 7200,) * 2)


def failed(folder: Path) -> None:
    still_going(folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "state": "failed", "failure": "rank 1: <disk> full"}))


def without_evaluations(folder: Path) -> None:
    still_going(folder)
    for name in ("metrics.jsonl", "timing.jsonl"):
        (folder / name).write_text("")


@pytest.mark.parametrize(
    ("change", "said", "shown"),
    [
        (still_going, "running, at step 800 of 1,600", "still going"),
        (dead, "died, at step 800 of 1,600", "died: it says that it runs"),
        (failed, "failed, at step 800 of 1,600", "rank 1: &lt;disk&gt; full"),
        (without_evaluations, "no evaluations yet", "has not been evaluated yet"),
    ],
)
def test_runs_that_have_not_finished_are_shown_as_far_as_they_came(runs, copy, tmp_path, capsys, change, said, shown):
    folder = copy("w0", "run")
    change(folder)
    for tool in PLOTS.values():
        assert tool.main([str(folder), str(runs["w1"]), "--out", f"{tmp_path}/f/"]) == 0
        assert said in capsys.readouterr().err
    assert report.main([str(folder), "--out", str(tmp_path / "r.html"), "--episode", "none"]) == 0
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert shown in html
    assert html.index(shown) < html.index("<h2"), "before all else"
    assert compare.main([str(folder), str(runs["w0"])]) == 0


def test_a_report_beside_a_dead_run_does_not_bring_it_to_life(copy, capsys):
    folder = copy("w0", "run")
    dead(folder)
    assert report.main([str(folder), "--episode", "none"]) == 0
    assert plot_learning.main([str(folder)]) == 0
    (run,) = results.open_runs([folder])
    assert run.state == "died"


TOOL_NAMES = ["plot_learning", "plot_scaling", "report", "compare"]
MAIN = {**PLOTS, "report": report, "compare": compare}


@pytest.mark.parametrize("tool", TOOL_NAMES)
def test_a_directory_that_is_no_run_is_one_line(tmp_path, capsys, tool):
    good = str(made_up(tmp_path / "good", 0, [1, 2, 3]))
    (tmp_path / "empty").mkdir()
    for bad, why in (("empty", "it has no config.yaml"), ("nowhere", "there is no such directory")):
        assert MAIN[tool].main([good, str(tmp_path / bad)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error == f"{tool}: {tmp_path / bad} is no run directory: {why}\n"


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("plot_learning", [], "the following arguments are required: RUN"),
        ("compare", ["a"], "give two run directories, or some after --a and some after --b"),
        ("compare", ["--a", "a"], "give two run directories"),
        ("compare", ["a", "b", "--fail-if-worse", "x"], "--fail-if-worse: 'x' is no percentage from 0 on"),
        ("report", ["a", "--episode", "song"], "invalid choice: 'song'"),
        ("plot_learning", ["RUN", "--out", "RUN/config.yaml/x"], "config.yaml"),
        ("report", ["RUN", "--out", "RUN"], "Is a directory; choose another --out"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, tool, arguments, message):
    run = str(made_up(tmp_path / "run", 0, [1, 2, 3]))
    try:
        code = MAIN[tool].main([argument.replace("RUN", run) for argument in arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tool}: ")
    assert message in line


def test_a_configuration_that_no_run_wrote_is_one_line(tmp_path, capsys):
    folder = made_up(tmp_path / "run", 0, [1, 2, 3])
    (folder / "config.yaml").write_text("agents: 2\n")
    assert report.main([str(folder)]) == 2
    assert (
        capsys.readouterr().err
        == f"report: {folder}/config.yaml: has no env; is it the config.yaml that a run wrote?\n"
    )


def test_records_without_a_figure_are_one_line(tmp_path, capsys):
    folder = made_up(tmp_path / "run", 0, [1, 2, 3])
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"cross_entropy_after"', '"something_else"'))
    assert plot_learning.main([str(folder), "--out", f"{tmp_path}/f/"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: a record of phase 'aip' has no 'cross_entropy_after'" in line


def test_neither_mpi_nor_torch_is_needed(runs, tmp_path):
    for module in ("mpi4py", "torch"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text("raise ImportError(f'{__name__} is blocked')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS.parent)])}
    run, other = str(runs["w0"]), str(runs["w1"])
    for tool, *arguments in (
        ("plot_learning", run, "--out", f"{tmp_path}/f/"),
        ("plot_scaling", run, "--out", f"{tmp_path}/f/"),
        ("report", run, "--out", str(tmp_path / "r.html")),
        ("compare", run, other),
    ):
        command = [sys.executable, str(TOOLS / f"{tool}.py"), *arguments]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert outcome.returncode == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "the episode could not be played (ImportError: torch is blocked)" in html
