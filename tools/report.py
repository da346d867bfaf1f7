#!/usr/bin/env python3
"""One HTML file that tells of a run, or of several: to open in a browser, mail or archive. Nothing in it is loaded
from elsewhere.

    python tools/report.py runs/NAME                         runs/NAME/report.html
    python tools/report.py runs/* --out report.html          several; seeds of one configuration are averaged
    python tools/report.py runs/NAME --episode none          without a picture of an episode

State and summary, results, figures, time and memory by phase, what the influence predictors learned, an episode of
the policies, configuration, and how to run it again. Works as well while a run is going, and for one that was stopped
or has died. The episode needs torch, the simulator and the run's policies; without them the report says so.
"""

import argparse
import base64
import html
import io
import math
import shlex
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dials_mpi.analysis import results
from dials_mpi.analysis.offline import Parser, add_runs, run_tool, tell
from dials_mpi.analysis.reading import Run
from dials_mpi.analysis.results import Group, mode_name
from dials_mpi.cli import add_env
from dials_mpi.errors import UserError
from dials_mpi.simulators.grid import places
from dials_mpi.simulators.registry import env_option

NAME = "report"
_TOOLS = Path(__file__).resolve().parent
_FILM_AGENTS = 9
"""Larger systems are shown as a still: a film of a hundred lights takes minutes and megabytes."""
_FILM_STEPS = 25
_PLAY_SECONDS = 120


def parser() -> Parser:
    p = Parser(NAME, __doc__)
    add_runs(p)
    add_env(p)
    p.add_argument(
        "--out", type=Path, help="file to write (report.html, for a single run inside its directory)", metavar="FILE"
    )
    p.add_argument(
        "--episode",
        choices=("auto", "film", "still", "none"),
        default="auto",
        help=f"picture of an episode; auto: a film of up to {_FILM_AGENTS} agents, a still of more (auto)",
    )
    p.add_argument("--published", action="store_true", help="show the paper's figures beside the runs' own")
    return p


def work(arguments: argparse.Namespace) -> int:
    runs = results.open_runs(arguments.runs)
    domains = [str(run.configuration["env"]) for run in runs]
    if arguments.env not in (None, *domains):
        raise UserError(
            f"--env: none of the runs is on {arguments.env!r}; there are: {', '.join(sorted(set(domains)))}"
        )
    groups, notes = results.group_runs(runs)
    notes += [note for group in groups for note in results.shortened_notes(group)]
    tell(NAME, [*notes, *results.state_notes(runs)])
    out = arguments.out or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    title = _title(groups)
    with ThreadPoolExecutor(1) as beside:
        episode = beside.submit(_episode, groups, arguments.episode, arguments.env)  # it takes as long as all the rest
        body = [
            f"<h1>{_text(title)}</h1>",
            _states(runs),
            _summary(groups, runs),
            _list(notes),
            _results(groups, runs),
            _figures(groups, arguments.published),
            _time(groups, runs),
            _influence(groups),
            episode.result(),
            _configuration(runs),
            _again(runs),
        ]
    template = string.Template((_TOOLS / "report_template.html").read_text(encoding="utf-8"))
    out.write_text(template.substitute(title=_text(title), body="\n".join(body)), encoding="utf-8")
    print(out)
    return 0


# The parts, from top to bottom.


def _title(groups: Sequence[Group]) -> str:
    modes = dict.fromkeys(mode_name(group.mode) for group in groups)
    domains = dict.fromkeys(group.domain for group in groups)
    sizes = dict.fromkeys(str(group.agents) for group in groups)
    return f"{_and(modes)} on {_and(domains)}, {_and(sizes)} agents"


def _states(runs: Sequence[Run]) -> str:
    """Prominent, and in words: the colour alone would not reach everybody."""
    unfinished = [run for run in runs if run.state != "finished"]
    if not unfinished:
        what = "Finished." if len(runs) == 1 else f"All {len(runs)} runs have finished."
        return f'<p class="state finished" role="status">{what}</p>'
    texts = []
    for run in unfinished:
        steps = run.configuration["steps"]
        what = {
            "running": "still going",
            "stopped": "was stopped",
            "failed": "failed",
            "died": "died: it says that it runs, but has not written for long",
        }.get(run.state, "is in an unknown state: there is no run.json")
        text = f"<strong>{_text(run.name)}: {what}</strong>, at step {results.reached(run):,} of {steps:,}."
        if run.facts.get("failure"):
            text += f" {_text(run.facts['failure'])}."
        if run.state != "running" and (run.path / "checkpoints").is_dir():
            text += f" Go on with <code>python -m dials_mpi --resume {_text(shlex.quote(str(run.path)))}"
            text += f"{_text(env_option(run.configuration['env']))}</code>."
        texts.append(f'<p class="state {run.state}" role="status">{text}</p>')
    return "\n".join(texts)


def _summary(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    sentences = []
    for group in groups:
        curve = results.average(group.runs, "evaluate", "mean_return")
        who = f"{group.label} with {group.agents} agents on {group.domain}"
        if not len(curve):
            sentences.append(f"{who} has not been evaluated yet.")
            continue
        value = f"a mean return of {_number(curve.mean[-1])}"
        if curve.n_seeds > 1:
            value += f" ± {curve.standard_error[-1]:.2f} (standard error over {curve.n_seeds} seeds)"
        else:
            value += f" (one seed, {group.seeds[0]})"
        sentences.append(f"{who} has come to {value} after {curve.steps[-1]:,} steps per agent.")
    for (domain, agents), found in _references(groups).items():
        best = max(found, key=found.__getitem__)
        sentences.append(
            f"The best hand-coded controller for {agents} agents on {domain} ({best}) gets {_number(found[best][0])}."
        )
    spent = [hours for run in runs if (hours := results.hours(run))]
    if spent:
        who = "The run has taken" if len(runs) == 1 else "The runs together have taken"
        sentences.append(f"{who} {_duration(sum(spent))}.")
    return f"<p>{_text(' '.join(sentences))}</p>" if len(groups) == 1 else _list(sentences)


def _references(groups: Sequence[Group]) -> dict[tuple[str, int], dict[str, tuple[float, float]]]:
    """By domain and number of agents: mean return and standard error of each hand-coded controller, over all runs."""
    runs: dict[tuple[str, int], list[Run]] = {}
    for group in groups:
        runs.setdefault((group.domain, group.agents), []).extend(group.runs)
    return {key: found for key, some in runs.items() if (found := results.references(some))}


def _results(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    rows, by_run = [], []
    several = len({(group.env, group.agents) for group in groups}) > 1
    for group in groups:
        name = f"{group.domain}, {group.agents}: {group.label}" if several else group.label
        curve = results.average(group.runs, "evaluate", "mean_return")
        at = f"{curve.steps[-1]:,}" if len(curve) else "–"
        final, spread, share = _final(group, curve)
        found = _references(groups).get((group.domain, group.agents), {})
        best = max((value for value, _ in found.values()), default=math.nan)
        spent = [hours for run in group.runs if (hours := results.hours(run))]
        speeds = [speed for run in group.runs if (speed := results.speed(run))]
        rows.append(
            [
                name,
                _and(str(seed) for seed in group.seeds),
                at,
                final,
                spread,
                _number(best),
                share,
                _duration(np.mean(spent)) if spent else "–",
                f"{np.mean(speeds):,.0f}" if speeds else "–",
            ]
        )
    head = [
        "runs",
        "seeds",
        "steps per agent",
        "final return",
        "agents, lowest to highest",
        "best reference",
        "agents above it",
        "time",
        "agent-steps/s",
    ]
    for run in runs:
        series = run.series("evaluate", "mean_return")
        entropy = run.series("aip", "cross_entropy_after")
        errors = run.series("evaluate", "standard_error")
        ranks = results.memory(run)
        by_run.append(
            [
                run.name,
                run.state,
                str(run.configuration["seed"]),
                f"{results.reached(run):,}"
                + ("" if run.state == "finished" else f" of {run.configuration['steps']:,}"),
                f"{_number(series.values[-1])} ± {errors.values[-1]:.2f}" if len(series) else "–",
                _number(entropy.values[-1]) if len(entropy) else "–",
                _duration(results.hours(run)),
                f"{results.speed(run):,.0f}" if results.speed(run) else "–",
                f"{max(ranks):,.0f} MiB" if ranks else "–",
            ]
        )
    run_head = [
        "run", "state", "seed", "steps per agent", "last return", "last cross-entropy", "time", "agent-steps/s",
        "largest rank",
    ]  # fmt: skip
    parts = [
        _table(
            head,
            rows,
            "Means over seeds; ± is the standard error over seeds, of a single one over episodes. An agent is above "
            "the reference if it earns more than the best controller at the same place.",
        ),
        _table(run_head, by_run, "Each run; ± is the standard error over the episodes of its last evaluation."),
    ]
    reference_rows = [
        [domain, str(agents), controller, f"{_number(value)} ± {error:.2f}"]
        for (domain, agents), found in _references(groups).items()
        for controller, (value, error) in found.items()
    ]
    if reference_rows:
        parts.append(
            _table(["domain", "agents", "controller", "mean return"], reference_rows, "Hand-coded references.")
        )
    return _section("results", "Results", *parts)


def _final(group: Group, curve: results.Curve) -> tuple[str, str, str]:
    """Last mean return, the range over agents, and the share of agents above the best reference, as texts."""
    if not len(curve):
        return "–", "–", "–"
    error = curve.standard_error[-1]
    if math.isnan(error):
        error = next(s for run in group.runs if len(s := run.series("evaluate", "standard_error"))).values[-1]
    _, agents = results.average_by_agent(group.runs, "evaluate", "mean_return")
    shares = [share for run in group.runs if (share := results.share_above_reference(run)) is not None]
    share = f"{100 * np.mean(shares):.0f} %" if shares else "–"
    return (
        f"{_number(curve.mean[-1])} ± {error:.2f}",
        f"{_number(agents[-1].min())} to {_number(agents[-1].max())}",
        share,
    )


def _figures(groups: Sequence[Group], with_published: bool) -> str:
    from dials_mpi.analysis import figures

    shown = []
    for env, agents in dict.fromkeys((group.env, group.agents) for group in groups):
        same = [group for group in groups if (group.env, group.agents) == (env, agents)]
        where = f"{same[0].domain}, {agents} agents"
        shown.append(
            (
                figures.learning(same, with_published),
                f"Mean return over training, {where}",
                f"Mean return on the global simulator, {where}. Shaded: standard error over seeds.",
                _told(same),
            )
        )
        shown.append(
            (
                figures.sweep(same),
                f"Mean return for each F, {where}",
                f"DIALS with each interval F between two retrainings, {where}.",
                "",
            )
        )
        shown.append(
            (
                figures.cross_entropy(same),
                f"Cross-entropy of the influence predictors over training, {where}",
                "Cross-entropy of the AIPs on held-out data, mean over agents. Open marks: before a retraining, on "
                "data of the policies as they are by then; filled: after it.",
                "",
            )
        )
    for env in dict.fromkeys(group.env for group in groups):
        same = [group for group in groups if group.env == env]
        if len({group.agents for group in same}) > 1:
            shown.append(
                (
                    figures.scaling(same, with_published),
                    f"Final return and runtime by number of agents, {same[0].domain}",
                    f"Final mean return and runtime by number of agents, {same[0].domain}.",
                    "",
                )
            )
    made = [_image(*each) for each in shown if each[0] is not None]
    if not made:
        return _section("figures", "Figures", "<p>Nothing to draw yet: there are no evaluations.</p>")
    return _section("figures", "Figures", f'<div class="figures">{"".join(made)}</div>')


def _told(groups: Sequence[Group]) -> str:
    """What the learning curves show, for those who cannot see them."""
    texts = []
    for group in groups:
        curve = results.average(group.runs, "evaluate", "mean_return")
        if len(curve):
            texts.append(
                f"{group.label}: {_number(curve.mean[0])} at step {curve.steps[0]:,}, {_number(curve.mean.max())} at "
                f"best, {_number(curve.mean[-1])} at step {curve.steps[-1]:,}"
            )
    return "; ".join(texts)


def _time(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    from dials_mpi.analysis import figures

    ended = [run for run in runs if run.facts.get("summary")]
    if not ended:
        return _section(
            "time", "Time and memory", "<p>No closing summary: it is written when a run ends or is stopped.</p>"
        )
    parts = []
    bars = figures.phases(groups)
    if bars:
        caption = "Wall time by phase, mean over ranks and seeds. The table has the numbers."
        parts.append(f'<div class="figures">{_image(bars, "Wall time by phase", caption, "")}</div>')
    names = list(dict.fromkeys(phase for run in ended for phase in run.facts["summary"]["phases"]))
    rows = []
    for phase in names:
        cells = [run.facts["summary"]["phases"].get(phase, {"mean_seconds": 0.0, "max_seconds": 0.0}) for run in ended]
        if any(cell["max_seconds"] > 0 for cell in cells):
            shares = [
                cell["mean_seconds"] / run.facts["summary"]["wall_seconds"]
                for cell, run in zip(cells, ended, strict=True)
            ]
            rows.append(
                [phase.replace("_", " ").replace("aip", "AIP").replace("ppo", "PPO")]
                + [
                    f"{cell['mean_seconds']:,.1f} s ({100 * share:.0f} %)"
                    + (f", {cell['max_seconds']:,.1f} s" if run.facts.get("ranks", 1) > 1 else "")
                    for cell, share, run in zip(cells, shares, ended, strict=True)
                ]
            )
    summaries = [run.facts["summary"] for run in ended]
    rows.append(["all", *(f"{s['wall_seconds']:,.1f} s, {s['core_hours']:.3f} core-hours" for s in summaries)])
    rows.append(["agent-steps/s", *(f"{s['agent_steps_per_second']:,.0f}" for s in summaries)])
    rows.append(["agent-steps/s and core", *(f"{s['agent_steps_per_second_and_core']:,.0f}" for s in summaries)])
    rows.append(["peak memory by rank", *(_memory(s["memory_mib_per_rank"]) for s in summaries)])
    caption = "Seconds by phase: mean over ranks (share of the run), with several ranks also the busiest one."
    parts.append(_table(["phase", *(run.name for run in ended)], rows, caption))
    for run in [run for run in ended if run.facts.get("resumed")]:
        step = run.facts["resumed"][-1].get("step", 0)
        parts.append(
            f'<p class="soft">{_text(run.name)} was resumed; its summary tells of the time since step {step:,}.</p>'
        )
    return _section("time", "Time and memory", *parts)


def _memory(ranks: Sequence[float]) -> str:
    if len(ranks) == 1:
        return f"{ranks[0]:,.0f} MiB"
    return f"{min(ranks):,.0f} to {max(ranks):,.0f} MiB, all {sum(ranks):,.0f} MiB"


def _influence(groups: Sequence[Group]) -> str:
    from dials_mpi.analysis import figures

    parts = []
    for group in groups:
        steps, before = results.average_by_agent(group.runs, "aip", "cross_entropy_before")
        _, after = results.average_by_agent(group.runs, "aip", "cross_entropy_after")
        if not len(steps):
            continue
        inner = places(group.runs[0].grid_shape) == "inner"
        both = inner.any()
        head = ["round", "step", "before", "after", "agents, lowest to highest"]
        head += ["border agents", "inner agents"] if both else []
        rows = []
        for number, (step, b, a) in enumerate(zip(steps, before, after, strict=True)):
            row = [str(number), f"{step:,}", f"{b.mean():.3f}", f"{a.mean():.3f}", f"{a.min():.3f} to {a.max():.3f}"]
            rows.append(row + ([f"{a[~inner].mean():.3f}", f"{a[inner].mean():.3f}"] if both else []))
        caption = "Cross-entropy on held-out data in nats, mean over agents, by round."
        told = f"mean over agents {after[0].mean():.3f} after the first round, {after[-1].mean():.3f} after the last"
        if both:
            told += f"; border agents {after[-1][~inner].mean():.3f}, inner agents {after[-1][inner].mean():.3f}"
        picture = _image(
            figures.by_agent(group),
            f"Cross-entropy and return of each agent on the grid, {group.label}",
            "Cross-entropy of each agent's AIP, and its mean return: a cell for each agent, at its place in the grid. "
            "Yellow is better.",
            told,
        )
        heading = f"<h3>{_text(f'{group.label}, {group.agents} agents on {group.domain}')}</h3>"
        parts.append(f'{heading}<div class="figures">{picture}</div>{_table(head, rows, caption)}')
    if not parts:
        parts.append("<p>No influence predictors were trained.</p>")
    return _section("influence", "Influence", *parts)


def _episode(groups: Sequence[Group], how: str, env: str | None) -> str:
    """Of the run that has come to the highest return, played in a process of its own: simulators may end theirs."""
    title = "An episode"
    if how == "none":
        return ""
    candidates = [
        (float(series.values[-1]), run)
        for group in groups
        for run in group.runs
        if (run.path / "policies.npz").exists() and len(series := run.series("evaluate", "mean_return"))
    ]
    if not candidates:
        return _section("episode", title, "<p>No picture: there are no policies yet (policies.npz).</p>")
    _, run = max(candidates, key=lambda item: item[0])
    film = how == "film" or (how == "auto" and run.n_agents <= _FILM_AGENTS)
    horizon = run.configuration.get("domain", {}).get("horizon", _FILM_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / ("episode.gif" if film else "episode.png")
        command = [sys.executable, str(_TOOLS / "render.py"), str(run.path.resolve()), "--out", str(picture)]
        command += ["--env", env] if env == run.configuration["env"] else []
        first = min(60, max(0, horizon - _FILM_STEPS))
        last = min(first + _FILM_STEPS, horizon)
        command += ["--first", str(first), "--steps", str(last - first)] if film else ["--at", str(last)]
        try:
            outcome = subprocess.run(command, capture_output=True, text=True, timeout=_PLAY_SECONDS)
            problem = (outcome.stderr.strip().splitlines() or ["it said nothing"])[-1] if outcome.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"it took more than {_PLAY_SECONDS} s"
        if problem or not picture.exists():
            tell(NAME, [f"{run.path}: no picture of an episode ({problem})"])
            return _section("episode", title, f"<p>No picture: the episode could not be played ({_text(problem)}).</p>")
        content = picture.read_bytes()
    steps = f"steps {first} to {last}" if film else f"step {last}"
    caption = f"The last policies of {run.name} on the global simulator, {steps} of an episode."
    body = _figure(content, "image/gif" if film else "image/png", f"Episode of {run.name}, {steps}", caption)
    body = f'<div class="episode">{body}</div>'
    if film:  # what moves must be possible to stop
        body = f"<details open><summary>Film of {steps}; close it to stop it</summary>{body}</details>"
    return _section("episode", title, body)


def _configuration(runs: Sequence[Run]) -> str:
    tables = [results.flat(run.configuration) for run in runs]
    differing = set(results.differences([run.configuration for run in runs]))
    keys = list(dict.fromkeys(key for table in tables for key in table))

    def rows_of(some: Iterable[str]) -> list[list[str]]:
        return [[key, *(_setting(table, key) for table in tables)] for key in some]

    head = ["setting", *(run.name for run in runs)]
    parts = []
    if differing:
        parts.append(_table(head, rows_of(key for key in keys if key in differing), "What differs between the runs."))
    everything = _table(head, rows_of(keys), "Every setting; rows that differ are marked.", differing)
    parts.append(f"<details><summary>All {len(keys)} settings</summary>{everything}</details>")
    return _section("configuration", "Configuration", *parts)


def _setting(table: dict[str, Any], key: str) -> str:
    if key not in table:
        return "not there"
    value = table[key]
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _again(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        facts = run.facts
        ranks = facts.get("ranks", 1)
        # A resumed run may have been told other things each time; its config.yaml has all that counted in the end.
        stored = f" --config {shlex.quote(str(run.path / 'config.yaml'))}{env_option(run.configuration['env'])}"
        words = stored if facts.get("resumed") else _arguments(facts)
        command = f"{f'mpirun -n {ranks} ' if ranks > 1 else ''}python -m dials_mpi{words}"
        versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
        revision = facts.get("git_revision")
        if revision:
            revision = revision.replace("+", " and changes that are not committed")
        resumed = [f"{r.get('time')} at step {r.get('step', 0):,}" for r in facts.get("resumed", [])]
        listed = {
            "seed": run.configuration["seed"],
            "layout": facts.get("layout"),
            "git revision": revision,
            "versions": versions,
            "MPI": facts.get("mpi_library"),
            "host": facts.get("host"),
            "started, ended": f"{facts.get('started', '–')}, {facts.get('ended', '–')}",
            "resumed": "; ".join(resumed),
            "directory": run.path,
        }
        entries = "".join(
            f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in listed.items() if value not in (None, "")
        )
        parts.append(f'<h3>{_text(run.name)}</h3><pre tabindex="0">{_text(command)}</pre><dl>{entries}</dl>')
    if len(runs) > 3:
        parts = [f"<details><summary>{len(runs)} runs</summary>{''.join(parts)}</details>"]
    intro = (
        "<p>The command, on the same build and layout, ends with the same bytes in metrics and policies; "
        "settings that it does not name are those above.</p>"
    )
    return _section("again", "How to run it again", intro, *parts)


def _arguments(facts: dict[str, Any]) -> str:
    """The command line behind the program's name, an option on each line if they are many."""
    arguments = [shlex.quote(str(argument)) for argument in facts.get("command", [])[1:]]
    between = " \\\n    " if len(arguments) > 8 else " "
    return "".join(f"{between if argument.startswith('--') else ' '}{argument}" for argument in arguments)


# HTML, piece by piece.


def _section(name: str, title: str, *parts: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{_text(title)}</h2>{"".join(parts)}</section>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, marked: Iterable[str] = ()) -> str:
    """A table that scrolls in its own box; rows whose first cell is in `marked` are highlighted."""
    marked = set(marked)
    top = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        kind = ' class="differs"' if first in marked else ""
        lines.append(f'<tr{kind}><th scope="row">{_text(first)}</th>{cells}</tr>')
    # What is above the box stays when it scrolls; the box can be reached and scrolled with the keyboard.
    return (
        f'<p class="above" aria-hidden="true">{_text(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _image(figure, alt: str, caption: str, told: str) -> str:
    """A matplotlib figure as a PNG inside the page; `told` says in its alternative text what it shows."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    plt.close(figure)
    return _figure(buffer.getvalue(), "image/png", f"{alt}. {told}" if told else alt, caption)


def _figure(content: bytes, kind: str, alt: str, caption: str) -> str:
    data = base64.b64encode(content).decode()
    picture = f'<img alt="{_text(alt)}" src="data:{kind};base64,{data}">'
    return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _list(items: Iterable[str]) -> str:
    lines = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.{2 if abs(value) < 100 else 1}f}"


def _duration(hours: float | None) -> str:
    if not hours:
        return "–"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _and(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def main(arguments: list[str] | None = None) -> int:
    return run_tool(parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
