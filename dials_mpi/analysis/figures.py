"""Figures of runs in the manner of the paper's figures 3 and 4: column width, readable when colour-blind or in print.

Every function returns a matplotlib figure, or None if its runs have nothing to show in it.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dials_mpi.analysis import published, results
from dials_mpi.analysis.reading import Run
from dials_mpi.analysis.results import Group
from dials_mpi.extras import extra

with extra("plots", "figures"):
    import matplotlib as mpl

    mpl.use("Agg")

    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

WIDTH = 3.4
"""Inches, a column of a paper in two columns."""
STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text in the PDF
}
# Okabe and Ito's palette: told apart with every common kind of colour blindness; line styles and markers besides.
_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_YELLOW, _BLUE, _VERMILION, _PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
_OF_MODE = {"gs": (_VERMILION, "--", "s"), "untrained-dials": (_GREEN, "-.", "^")}
_OTHERS = [
    (_BLUE, "-", "o"),
    (_PURPLE, (0, (4, 1.5)), "D"),
    (_SKY, (0, (5, 1, 1, 1)), "v"),
    (_ORANGE, (0, (2, 1)), "P"),
    (_BLACK, (0, (1, 1)), "X"),
]
_REFERENCE_STYLES = [(0, (5, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1, 1, 1))]
_PHASES = {
    "simulate": (("simulate",), _BLUE, ""),
    "act": (("act",), _SKY, ""),
    "PPO update": (("ppo_update",), _ORANGE, ""),
    "AIP training": (("aip_training",), _GREEN, "////"),
    "collect datasets": (("collect", "scatter"), _VERMILION, ""),
    "evaluate": (("evaluate",), _PURPLE, ""),
    "start, gather, write": (("start", "gather", "write"), _BLACK, ""),
    "wait for other ranks": (("wait",), "#dddddd", ""),
}
"""Bars of the time by phase: which of the clock's phases, colour, hatching."""
_SHORT = FuncFormatter(lambda steps, _: results.short(steps))
_POWER_OF_TWO = FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{round(1 / value)}")


def learning(groups: Sequence[Group], with_published: bool = False) -> Figure | None:
    """Mean return on the GS against steps and time, with standard errors over seeds (figure 3, left).

    Args:
        groups: of one domain and number of agents.
        with_published: the paper's final returns as faint lines.
    """
    curves = [(group, results.average(group.runs, "evaluate", "mean_return")) for group in groups]
    curves = [(group, curve) for group, curve in curves if len(curve)]
    if not curves:
        return None
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(2, 1, figsize=(WIDTH, 3.7), sharey=True)
        looks = _looks(groups)
        unit = _time_unit(curve.hours[-1] for _, curve in curves)
        for group, curve in curves:
            for axes, x in zip(rows, (curve.steps, curve.hours * unit[0]), strict=True):
                _line(axes, x, curve, looks[group])
        handles = [_handle(looks[group], f"{group.label} ({_seeds(curve.n_seeds)})") for group, curve in curves]
        hand_coded = results.references([run for group in groups for run in group.runs])
        for (controller, (value, _)), dashes in zip(hand_coded.items(), _REFERENCE_STYLES * 9, strict=False):
            for axes in rows:
                axes.axhline(value, color=_BLACK, linewidth=0.9, linestyle=dashes)
            handles.append(_handle((_BLACK, dashes, ""), f"hand-coded: {controller}"))
        if with_published:
            handles += _published_lines(rows, groups, looks)
        _finish_over_time(rows, "mean return", unit)
        _legend(figure, handles)
    return figure


def cross_entropy(groups: Sequence[Group]) -> Figure | None:
    """Held-out cross-entropy of the AIPs against steps and time; every retraining drops from ○ to ● (figure 4, right).

    Between two retrainings the cross-entropy of the AIPs that stay as they are follows the other agents' policies.
    """
    curves = []
    for group in groups:
        before, after = (results.average(group.runs, "aip", f"cross_entropy_{when}") for when in ("before", "after"))
        if len(before):
            curves.append((group, before, after))
    if not curves:
        return None
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(2, 1, figsize=(WIDTH, 3.7), sharey=True)
        looks = _looks(groups)
        unit = _time_unit(after.hours[-1] for _, _, after in curves)
        for group, before, after in curves:
            colour, dashes, marker = looks[group]
            mean, error = (
                np.stack([getattr(before, name), getattr(after, name)], axis=1).ravel()
                for name in ("mean", "standard_error")
            )
            for axes, x in zip(rows, (after.steps, after.hours * unit[0]), strict=True):
                twice = np.repeat(x, 2)
                axes.plot(twice, mean, color=colour, linestyle=dashes)
                axes.fill_between(twice, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
                shared = {"color": colour, "linestyle": "", "marker": marker}
                axes.plot(x, before.mean, markerfacecolor="white", markeredgewidth=0.8, **shared)
                axes.plot(x, after.mean, **shared)
        handles = [_handle(looks[group], f"{group.label} ({_seeds(after.n_seeds)})") for group, _, after in curves]
        marks = {"color": "#555555", "marker": "o", "linestyle": ""}
        handles.append(Line2D([], [], markerfacecolor="white", label="before retraining", **marks))
        handles.append(Line2D([], [], label="after retraining", **marks))
        _finish_over_time(rows, "cross-entropy (nats)", unit)
        rows[0].set_ylim(bottom=0)
        _legend(figure, handles)
    return figure


def sweep(groups: Sequence[Group]) -> Figure | None:
    """Mean return of DIALS against steps, one curve for each F (figure 4, left); None with fewer than two."""
    dials = [group for group in groups if group.interval is not None and group.runs]
    curves = [(group, results.average(group.runs, "evaluate", "mean_return")) for group in dials]
    curves = [(group, curve) for group, curve in curves if len(curve)]
    if len({group.interval for group, _ in curves}) < 2:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 2.1))
        looks = _looks(groups)
        for group, curve in curves:
            _line(axes, curve.steps, curve, looks[group])
        axes.set(ylabel="mean return", xlabel="steps per agent")
        axes.xaxis.set_major_formatter(_SHORT)
        _legend(figure, [_handle(looks[group], f"{group.label} ({_seeds(curve.n_seeds)})") for group, curve in curves])
    return figure


def scaling(groups: Sequence[Group], with_published: bool = False) -> Figure | None:
    """Final mean return, and runtime on a log₂ axis, by number of agents (figure 3, middle and right).

    Args:
        groups: of one domain.
        with_published: the paper's figures as hollow marks.
    """
    sizes = sorted({group.agents for group in groups})
    families: dict[str, list[Group]] = {}
    for group in groups:
        families.setdefault(group.label, []).append(group)
    ends = {group: _final(group) for group in groups}
    if all(end is None for end in ends.values()):
        return None
    lengths = {run.configuration["steps"] for group, end in ends.items() if end for run in group.runs}
    common = lengths.pop() if len(lengths) == 1 else None
    per = common or 1_000_000
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(2, 1, figsize=(WIDTH, 3.7), sharex=True)
        looks = _looks([members[0] for members in families.values()])
        handles = []
        for position, (label, members) in enumerate(families.items()):
            look = looks[members[0]]
            shift = 0.12 * (position - (len(families) - 1) / 2)
            shown = [group for group in members if ends[group]]
            places = np.array([sizes.index(group.agents) + shift for group in shown])
            if not shown:
                continue
            colour, dashes, marker = look
            means, errors, times = np.array([ends[group] for group in shown]).T
            drawn = {"color": colour, "linestyle": dashes, "marker": marker}
            rows[0].errorbar(places, means, errors, **drawn)
            rows[1].plot(places, times * per, **drawn)
            handles.append(_handle(look, f"{label} ({_seeds(max(len(group.runs) for group in shown))})"))
            if with_published:
                hollow = {**drawn, "linestyle": "", "markerfacecolor": "white", "alpha": 0.7, "markersize": 5}
                mode, domain = members[0].mode, members[0].domain
                paper = published.FINAL_RETURN.get(domain, {}).get(mode, {})
                rows[0].plot(places, [paper.get(group.agents, math.nan) for group in shown], **hollow)
                times = [
                    published.runtime_hours(domain, mode, group.agents, published.STEPS, group.interval)
                    for group in shown
                ]
                times = [math.nan if hour is None else hour / published.STEPS * per for hour in times]
                rows[1].plot(places, times, **hollow)
        if with_published and groups[0].domain in published.FINAL_RETURN:
            handles.append(
                Line2D([], [], color="#777777", marker="o", markerfacecolor="white", linestyle="", label="published")
            )
        rows[0].set(ylabel="final mean return")
        rows[1].set(xlabel="agents", ylabel=f"hours for {results.short(per)} steps per agent")
        rows[1].set_yscale("log", base=2)
        low, high = rows[1].get_ylim()
        rows[1].set_ylim(2.0 ** math.floor(math.log2(low)), 2.0 ** math.ceil(math.log2(high)))  # two ticks at least
        rows[1].yaxis.set_major_locator(LogLocator(base=2, numticks=8))
        rows[1].yaxis.set_major_formatter(_POWER_OF_TWO)
        rows[1].yaxis.set_minor_formatter(NullFormatter())
        rows[1].set_xticks(range(len(sizes)), [str(size) for size in sizes])
        rows[1].set_xlim(-0.5, len(sizes) - 0.5)
        for controller, dashes in zip(
            dict.fromkeys(c for group in groups for c in results.references(group.runs)),
            _REFERENCE_STYLES * 9,
            strict=False,
        ):
            values = []
            for size in sizes:
                found = results.references([run for group in groups if group.agents == size for run in group.runs])
                values.append(found.get(controller, (math.nan, 0))[0])
            at = np.arange(len(sizes))
            rows[0].hlines(values, at - 0.35, at + 0.35, color=_BLACK, linewidth=0.9, linestyle=dashes)
            handles.append(_handle((_BLACK, dashes, ""), f"hand-coded: {controller}"))
        _legend(figure, handles)
    return figure


def phases(groups: Sequence[Group]) -> Figure | None:
    """Wall time by phase, mean over ranks and seeds, a bar for each group; runs without a closing summary are left out.

    Of a resumed run it is the time since it was resumed, which is what its summary tells.
    """
    bars = []
    several_sizes = len({group.agents for group in groups}) > 1
    several_domains = len({group.domain for group in groups}) > 1
    for group in groups:
        tables = [run.facts["summary"]["phases"] for run in group.runs if run.facts.get("summary")]
        if tables:
            label = f"{group.agents} agents: {group.label}" if several_sizes else group.label
            label = f"{group.domain}, {label}" if several_domains else label
            hours = [
                np.mean([sum(table.get(phase, {}).get("mean_seconds", 0) for phase in names) for table in tables])
                / 3600
                for names, _, _ in _PHASES.values()
            ]
            bars.append((label, hours))
    if not bars:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.75 + 0.42 * len(bars)))
        factor, name = _time_unit(sum(hours) for _, hours in bars)
        for row, (label, hours) in enumerate(bars):
            left = 0.0
            for (_, colour, hatch), hour in zip(_PHASES.values(), hours, strict=True):
                axes.barh(
                    row,
                    hour * factor,
                    left=left,
                    height=0.45,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.3,
                )
                left += hour * factor
            axes.annotate(label, (0, row - 0.26), (1, 1), textcoords="offset points", va="bottom")
        axes.set(xlabel=f"{name}, mean over ranks", yticks=[], ylim=(len(bars) - 0.6, -0.75))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        handles = [
            mpl.patches.Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=phase)
            for phase, (_, colour, hatch) in _PHASES.items()
        ]
        _legend(figure, handles)
    return figure


def by_agent(group: Group) -> Figure | None:
    """Cross-entropy of each agent's AIP in the first and last round, and its last mean return, on the agents' grid.

    Averaged over the group's seeds: an agent has the same neighbours in all of them.
    """
    panels = []  # title, values, limits of the colours
    after_steps, after = results.average_by_agent(group.runs, "aip", "cross_entropy_after")
    if len(after):
        _, before = results.average_by_agent(group.runs, "aip", "cross_entropy_before")
        panels.append((f"AIPs at {results.short(after_steps[0])},\nafter training", after[0], _range(after[0])))
        if len(after) > 1:
            step, limits = results.short(after_steps[-1]), _range(before[-1], after[-1])
            panels.append((f"AIPs at {step},\nbefore retraining", before[-1], limits))
            panels.append((f"AIPs at {step},\nafter retraining", after[-1], limits))
    n_entropies, shape = len(panels), group.runs[0].grid_shape
    return_steps, returns = results.average_by_agent(group.runs, "evaluate", "mean_return")
    if len(returns):
        panels.append((f"mean return\nat {results.short(return_steps[-1])}", returns[-1], _range(returns[-1])))
    if not panels:
        return None
    with plt.rc_context({**STYLE, "axes.grid": False}):
        n_rows = -(-len(panels) // 2)
        figure, grid = plt.subplots(n_rows, 2, figsize=(WIDTH, 1.62 * n_rows), squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for index, (axes, (title, values, limits)) in enumerate(zip(grid.flat, panels, strict=False)):
            # Lower cross-entropies and higher returns are better, and yellow.
            entropy = index < n_entropies
            image = _grid(axes, values.reshape(shape), limits, "cividis_r" if entropy else "cividis")
            axes.set_title(title)
            figure.colorbar(image, ax=axes, shrink=0.8, aspect=12, label="nats" if entropy else "")
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem`.png and `stem`.pdf and closes the figure; folders are made."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".pdf")]
    with plt.rc_context(STYLE):
        for file in files:
            figure.savefig(file, dpi=200)
    plt.close(figure)
    return files


def _looks(groups: Sequence[Group]) -> dict[Group, tuple]:
    """Colour, line style and marker of each group; GS and untrained DIALS have theirs, the others take turns."""
    looks, free = {}, iter(_OTHERS * (1 + len(groups) // len(_OTHERS)))
    for group in groups:
        fixed = _OF_MODE.get(group.mode)
        taken = fixed in looks.values()
        looks[group] = fixed if fixed and not taken else next(free)
    return looks


def _line(axes, x: np.ndarray, curve: results.Curve, look: tuple) -> None:
    colour, dashes, marker = look
    every = max(1, len(x) // 6)
    axes.plot(x, curve.mean, color=colour, linestyle=dashes, marker=marker, markevery=every)
    low, high = curve.mean - curve.standard_error, curve.mean + curve.standard_error
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _handle(look: tuple, label: str) -> Line2D:
    colour, dashes, marker = look
    return Line2D([], [], color=colour, linestyle=dashes, marker=marker, label=label)


def _published_lines(rows, groups: Sequence[Group], looks: dict[Group, tuple]) -> list[Line2D]:
    shown = False
    for mode in {group.mode: None for group in groups}:
        group = next(group for group in groups if group.mode == mode)
        value = published.FINAL_RETURN.get(group.domain, {}).get(mode, {}).get(group.agents)
        if value is not None:
            shown = True
            for axes in rows:
                axes.axhline(value, color=looks[group][0], linewidth=2.5, alpha=0.3)
    if not shown:
        return []
    label = f"published, after {results.short(published.STEPS)} steps"
    return [Line2D([], [], color="#777777", linewidth=2.5, alpha=0.4, label=label)]


def _finish_over_time(rows, ylabel: str, unit: tuple[float, str]) -> None:
    for axes, xlabel in zip(rows, ("steps per agent", unit[1]), strict=True):
        axes.set(ylabel=ylabel, xlabel=xlabel)
    rows[0].xaxis.set_major_formatter(_SHORT)


def _legend(figure: Figure, handles: list) -> None:
    """Above the axes, where it hides no data, in two columns if they fit; the figure grows by its height."""
    for handle in handles:
        handle.set_label(textwrap.fill(handle.get_label(), 52))
    for columns in (2, 1):
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.0)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def _time_unit(longest_hours) -> tuple[float, str]:
    """Factor on hours, and what it makes of them: minutes or seconds for short runs."""
    longest = max(longest_hours, default=0.0)
    return (1.0, "hours") if longest >= 1 else (60.0, "minutes") if longest >= 1 / 30 else (3600.0, "seconds")


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _final(group: Group) -> tuple[float, float, float] | None:
    """Last mean return, its standard error over seeds, and hours per step."""
    curve = results.average(group.runs, "evaluate", "mean_return")
    spent = [results.hours(run) / results.reached(run) for run in group.runs if results.reached(run)]
    if not len(curve) or not spent:
        return None
    return float(curve.mean[-1]), float(curve.standard_error[-1]), float(np.mean(spent))


def _range(*values: np.ndarray) -> tuple[float, float]:
    return min(v.min() for v in values), max(v.max() for v in values)


def _grid(axes, table: np.ndarray, limits: tuple[float, float], colours: str):
    """Agents' values [rows, columns] on their grid, with numbers where they fit."""
    image = axes.imshow(table, cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if max(table.shape) <= 4:
        for (row, column), value in np.ndenumerate(table):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", size=7, color="white" if dark else "black")
    return image


__all__ = ["Run", "by_agent", "cross_entropy", "learning", "phases", "save", "scaling", "sweep"]
