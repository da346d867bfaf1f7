#!/usr/bin/env python3
"""What a run's influence datasets say: per agent and round, over the grid, and against the paper's theory.

    python tools/influence.py runs/NAME
    python tools/influence.py runs/NAME --csv tables --figure influence.png

entropy         of the marginals, mean over sources: the cross-entropy of the best predictor without memory or input
before, after   held-out cross-entropy of the AIP before and after its training on this round
gain            entropy - after: what the AIP knows from the local history, a lower bound of the information in it
                (the entropy is of all episodes, so that little gain may come out below 0)
bit             largest mutual information between a source and one bit of the current local state
autocorr        of the sources with themselves one step later, mean over sources
TV, JS          drift: total variation and Jensen-Shannon distance between this round's marginals and the last one's
ξ               drift of the predictor: mean L1 distance Σ_u |I(u|l) - I'(u|l)| between the AIPs of this round and of
                the last one on this round's histories (Lemma 2); needs torch, left out without it

Entropies and information in nats per source and step. No MPI, and without ξ no torch either.
"""

import argparse
import csv
import os
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)  # files are read side by side

import numpy as np  # noqa: E402

from dials_mpi.analysis.offline import Parser, run_tool  # noqa: E402
from dials_mpi.analysis.reading import Run, open_run  # noqa: E402
from dials_mpi.cli import at_least, number  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.extras import extra  # noqa: E402
from dials_mpi.influence import bounds  # noqa: E402
from dials_mpi.influence.analysis import (  # noqa: E402
    autocorrelation,
    entropy,
    jensen_shannon,
    marginals,
    mutual_information,
    predictor_distance,
    total_variation,
)
from dials_mpi.influence.dataset import read_rounds  # noqa: E402
from dials_mpi.simulators.grid import places  # noqa: E402
from dials_mpi.simulators.interface import Influence  # noqa: E402

COLUMNS = ("entropy", "before", "after", "gain", "bit", "autocorr", "TV", "JS", "ξ")


@dataclass
class AgentRound:
    """Figures of one agent in one round."""

    agent: int
    round: int
    step: int
    samples: int
    episodes: int
    marginals: np.ndarray
    """[U, C]."""
    bits: np.ndarray
    """[U, D] mutual information."""
    autocorrelations: np.ndarray
    """[U, lags]."""
    figures: dict[str, float]
    """By `COLUMNS`; NaN where there is none."""
    histories: np.ndarray
    """[E', T, D] uint8, local states in some of the round's episodes, for ξ."""
    actions: np.ndarray
    """[E', T] uint8, in the same."""
    predictor: np.ndarray | None
    """[P] float32."""
    n_actions: int
    """That the predictor sees; 0 if it sees none."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("influence", __doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write agents.csv and sources.csv there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw heat maps over the grid of agents")
    parser.add_argument("--lags", type=at_least(1), default=5, help="steps of autocorrelation in sources.csv (5)")
    parser.add_argument(
        "--histories", type=at_least(0), default=2, metavar="E", help="episodes per agent and round for ξ; 0: no ξ (2)"
    )
    parser.add_argument(
        "--reward-bound",
        type=number(1e-9),
        default=1.0,
        metavar="R",
        help="rewards of a step lie between 0 and R (1, as in both domains)",
    )
    return run_tool(parser, work, arguments)


def work(arguments: argparse.Namespace) -> None:
    run = open_run(arguments.run)
    rounds = read(run, arguments.lags, arguments.histories)
    if arguments.histories:
        add_predictor_distances(run, rounds)
    show(run, rounds, arguments.reward_bound)
    if arguments.csv:
        write_tables(arguments.csv, rounds)
    if arguments.figure:
        draw(run, rounds, arguments.figure)


def read(run: Run, lags: int, histories: int) -> list[AgentRound]:
    """All rounds of all agents; files that cannot be read are named and left out.

    Raises:
        UserError: nothing is left.
    """
    files = run.dataset_files
    if not files:
        mode = run.configuration.get("mode")
        raise UserError(f"{run.path}: no influence datasets (mode {mode}; only dials collects them)")
    rounds = []
    with ProcessPoolExecutor() as pool:
        for found, complaint in pool.map(partial(_read_agent, lags=lags, histories=histories), files):
            rounds += found
            if complaint:
                print(f"influence: left out: {complaint}", file=sys.stderr)
    if not rounds:
        raise UserError(f"{run.path / 'influence'}: none of {len(files)} files can be read")
    if len(files) < run.n_agents:
        print(f"influence: note: {run.n_agents - len(files)} of {run.n_agents} agents have no dataset", file=sys.stderr)
    return rounds


def _read_agent(file: Path, lags: int, histories: int) -> tuple[list[AgentRound], str]:
    rounds: list[AgentRound] = []
    try:
        for read in read_rounds(file):
            classes = int(read.attributes["influence_classes"])
            sources = read.influence_sources
            shares = marginals(sources, classes)
            bits = mutual_information(sources, read.history, classes)
            correlations = autocorrelation(sources, classes, min(lags, sources.shape[1] - 1))
            after = float(read.attributes["cross_entropy_after"])
            figures = dict.fromkeys(COLUMNS, np.nan) | {
                "entropy": entropy(shares).mean(),
                "before": float(read.attributes["cross_entropy_before"]),
                "after": after,
                "gain": entropy(shares).mean() - after,
                "bit": bits.max(),
                "autocorr": correlations[:, 0].mean(),
            }
            if rounds:
                figures["TV"] = total_variation(shares, rounds[-1].marginals).mean()
                figures["JS"] = jensen_shannon(shares, rounds[-1].marginals).mean()
            agent, number, step = (int(read.attributes[key]) for key in ("agent", "round", "step"))
            rounds.append(
                AgentRound(
                    agent=agent,
                    round=number,
                    step=step,
                    samples=sources.shape[0] * sources.shape[1],
                    episodes=sources.shape[0],
                    marginals=shares,
                    bits=bits,
                    autocorrelations=correlations,
                    figures=figures,
                    histories=read.history[:histories].copy(),
                    actions=read.actions[:histories].copy(),
                    predictor=read.predictor,
                    n_actions=int(read.attributes.get("n_actions", 0)),
                )
            )
    except UserError as error:
        return [], str(error)
    except (LookupError, TypeError, ValueError) as error:
        return [], f"{file}: no influence dataset of a run ({type(error).__name__}: {error})"
    return rounds, ""


def add_predictor_distances(run: Run, rounds: list[AgentRound]) -> None:
    """ξ of each round against the one before, for all agents at once."""
    by_round = {}
    for item in rounds:
        if item.predictor is not None:
            by_round.setdefault(item.round, {})[item.agent] = item
    pairs = [number for number in sorted(by_round) if number - 1 in by_round]
    if not pairs:
        return
    try:
        from dials_mpi.influence.predictor import InfluencePredictor
        from dials_mpi.influence.settings import PredictorSettings
    except ImportError as error:
        print(f"influence: ξ is left out: {error}", file=sys.stderr)
        return
    try:
        settings = PredictorSettings(**run.configuration["predictor"])
    except (KeyError, TypeError, ValueError) as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"{run.path / 'config.yaml'}: no settings of a predictor ({what}); restore it") from None

    def compare(number: int) -> None:
        agents = sorted(by_round[number].keys() & by_round[number - 1].keys())
        now, then = ([by_round[n][agent] for agent in agents] for n in (number, number - 1))
        sources, classes = now[0].marginals.shape
        influence = Influence(sources, classes, now[0].histories.shape[-1])
        histories, actions = (np.stack([getattr(item, name) for item in now]) for name in ("histories", "actions"))
        predicted = []
        for items in (now, then):
            parameters = np.stack([item.predictor for item in items])
            try:
                predictor = InfluencePredictor.from_parameters(parameters, influence, settings, items[0].n_actions)
            except ValueError as error:
                raise UserError(
                    f"{run.path}: the predictors of round {number} are not those of config.yaml ({error})"
                ) from None
            predicted.append(predictor.probabilities(histories, actions))
        for item, distance in zip(now, predictor_distance(*predicted).mean(axis=(1, 2)), strict=True):
            item.figures["ξ"] = float(distance)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compare, pairs))


def show(run: Run, rounds: Sequence[AgentRound], reward_bound: float) -> None:
    first = rounds[0]
    sources, classes = first.marginals.shape
    print(
        f"{run.name}: {run.n_agents} agents, {sources} influence sources of {classes} classes, run {run.state}\n"
        f"means over agents; entropies and information in nats\n"
    )
    print(
        f"{'round':>5} {'step':>10} {'agents':>6} {'samples':>8} {'episodes':>8}"
        + "".join(f" {name:>9}" for name in COLUMNS)
    )
    for round_ in sorted({item.round for item in rounds}):
        mine = [item for item in rounds if item.round == round_]
        line = f"{round_:5} {mine[0].step:10,} {len(mine):6} {mine[0].samples:8,} {mine[0].episodes:8,}"
        print(line + _means(mine))
    last = max(item.round for item in rounds)
    final = [item for item in rounds if item.round == last]
    kinds = places(run.grid_shape)
    by_kind = {kind: [item for item in final if kinds[item.agent] == kind] for kind in ("corner", "edge", "inner")}
    by_kind = {kind: mine for kind, mine in by_kind.items() if mine}
    if len(by_kind) > 1:
        print("\nround {} by place in the grid, {}×{}".format(last, *run.grid_shape))
        for kind, mine in by_kind.items():
            print(f"{kind:>16} {len(mine):6} {'':17}" + _means(mine))
    _show_theory(run, rounds, reward_bound)


def _means(items: Sequence[AgentRound]) -> str:
    columns = [np.array([item.figures[name] for item in items]) for name in COLUMNS]
    return "".join(" " * 9 + "-" if np.isnan(c).all() else f" {np.nanmean(c):9.3f}" for c in columns)


def _show_theory(run: Run, rounds: Sequence[AgentRound], reward_bound: float) -> None:
    """Lemma 2 and Theorem 1 with the largest ξ found."""
    known = [item for item in rounds if not np.isnan(item.figures["ξ"])]
    if not known:
        return
    worst = max(known, key=lambda item: item.figures["ξ"])
    distance, horizon = worst.figures["ξ"], worst.samples // worst.episodes
    difference = bounds.value_difference(distance, reward_bound, horizon)
    trivial = bounds.trivial_difference(reward_bound, horizon)
    says = (
        f"Lemma 2: if agent {worst.agent} had kept the predictor of round {worst.round - 1} in round {worst.round}, "
        f"with ξ = {distance:.3f} (a mean over histories that occurred; the lemma wants the largest, so this is the "
        f"kinder number), rewards up to {reward_bound:g} and {horizon} steps, the value of any policy would be wrong "
        f"by at most {difference:,.1f}. Returns lie between 0 and {trivial:g} anyway: the bound "
    )
    if difference >= trivial:
        says += (
            f"is {difference / trivial:,.1f} times that and says nothing here. It grows with the square of the "
            "horizon, as if every step under a wrong influence were lost for good."
        )
    else:
        says += f"is {difference / trivial:.0%} of that."
    needed = bounds.distance_to_promise(trivial, reward_bound, horizon)
    says_too = (
        f"Theorem 1: the optimal policy is sure to stay the same where the best action is worth more than "
        f"{2 * difference:,.1f} above the second best. No action is worth more than {trivial:g}, so for a promise ξ "
        f"would have to be below {needed:.2g} at the very least."
    )
    for paragraph in (says, says_too):
        print("\n" + textwrap.fill(paragraph, 118))


def write_tables(folder: Path, rounds: Sequence[AgentRound]) -> None:
    """agents.csv: a row per agent and round; sources.csv: a row per agent, round and source.

    Raises:
        UserError: the folder cannot be written.
    """
    first = rounds[0]
    sources, classes = first.marginals.shape
    lags = first.autocorrelations.shape[1]
    agents = [
        {"agent": i.agent, "round": i.round, "step": i.step, "samples": i.samples, "episodes": i.episodes, **i.figures}
        for i in rounds
    ]
    per_source = [
        {
            "agent": i.agent,
            "round": i.round,
            "source": source,
            **{f"share_{c}": i.marginals[source, c] for c in range(classes)},
            "entropy": float(entropy(i.marginals[source])),
            "best_bit": int(i.bits[source].argmax()),
            "best_bit_information": i.bits[source].max(),
            **{f"autocorrelation_{lag + 1}": i.autocorrelations[source, lag] for lag in range(lags)},
        }
        for i in rounds
        for source in range(sources)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("agents", agents), ("sources", per_source)):
            _write_table(folder / f"{name}.csv", rows)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def _write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    print(f"{len(rows)} rows in {file}")


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def draw(run: Run, rounds: Sequence[AgentRound], file: Path) -> None:
    """Writes `heat_maps` to a file.

    Raises:
        UserError: no matplotlib, or the file cannot be written.
    """
    with extra("plots", "--figure"):
        import matplotlib
    matplotlib.use("Agg")
    figure = heat_maps(run, rounds)
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {file}: cannot be written ({error})") from error
    print(f"heat maps in {file}")


def heat_maps(run: Run, rounds: Sequence[AgentRound]):
    """A matplotlib figure of the last round over the grid of agents, a map for each of some figures."""
    import matplotlib.pyplot as plt

    titles = {
        "entropy": "entropy of the marginals\n(nats)",
        "after": "cross-entropy of the AIP\n(nats)",
        "gain": "gain of the AIP\n(nats)",
        "ξ": "drift of the AIP, ξ\n(L1 distance, 0 to 2)",
        "TV": "drift of the marginals\n(total variation, 0 to 1)",
    }
    last = max(item.round for item in rounds)
    final = [item for item in rounds if item.round == last]
    names = [name for name in titles if not all(np.isnan(item.figures[name]) for item in final)]
    figure, axes = plt.subplots(1, len(names), figsize=(2.4 * len(names), 2.6), squeeze=False, layout="constrained")
    for name, axis in zip(names, axes[0], strict=True):
        grid = np.full(run.grid_shape, np.nan)
        for item in final:
            grid.flat[item.agent] = item.figures[name]
        image = axis.imshow(grid, cmap="viridis")
        axis.set_title(titles[name], fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        figure.colorbar(image, ax=axis, shrink=0.75).ax.tick_params(labelsize=7)
        if max(grid.shape) <= 5:
            middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
            for (row, column), value in np.ndenumerate(grid):
                colour = "black" if value > middle else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    figure.suptitle(f"{run.configuration['env']}, {run.n_agents} agents, round {last}", fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
