"""The plots of a study as pictures, for the artifacts of its MLflow run."""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pipeline.report.found import Found
from pipeline.report.shapes import (
    ENDS,
    KILLED,
    TITLES,
    Scale,
    as_optuna,
    bars,
    curves,
    importances,
    rungs,
    spans_decades,
    survival,
    varied,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE, DPI = (10.0, 5.6), 110
LABELLED = 0.02  # of the timeline's width: in narrower bars there is no room for a number
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.constrained_layout.use": True,
}
BEST = "#d55e00"


def pictures(found: Found) -> Iterator[tuple[str, "Figure"]]:
    """The name and figure of each plot there is something to show in, one after the other; each is closed after it."""
    mpl.use("Agg")
    makers: dict[str, Callable[[], Figure | None]] = {
        "curves": lambda: _curves(found),
        "timeline": lambda: _timeline(found),
        "rungs": lambda: _rungs(found),
        "history": lambda: _history(found),
        "importances": lambda: _importances(found),
        "parallel": lambda: _parallel(found),
        "slice": lambda: _slice(found),
    }
    for name, make in makers.items():
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's plots are experimental, and say so each time
            figure = make()
            try:
                if figure is not None:
                    yield name, figure
            finally:
                plt.close("all")


def _figure(title: str, found: Found) -> tuple["Figure", "Axes"]:
    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    axes.set_title(f"{TITLES[title]} of {found.name}")
    return figure, axes


def _curves(found: Found) -> "Figure | None":
    drawn = curves(found)
    if not drawn:
        return None
    figure, axes = _figure("curves", found)
    levels = sorted({curve.rung for curve in drawn})
    colours = dict(zip(levels, mpl.colormaps["viridis_r"](np.linspace(0.08, 0.95, len(levels))), strict=True))
    for level in levels:
        members = [curve for curve in drawn if curve.rung == level]
        lines = [np.column_stack([one.epochs, one.values]) for one in members]
        axes.add_collection(LineCollection(lines, colors=[colours[level]], linewidths=1.1, alpha=0.75))
        ends = np.array([line[-1] for line in lines])
        axes.plot(ends[:, 0], ends[:, 1], "o", color=colours[level], markersize=3)
    handles = [Line2D([], [], color=colours[one], label=f"reached epoch {one}") for one in levels]
    best = found.ranking[0].number if found.ranking else None
    for curve in drawn:
        if curve.lineage.number == best:
            axes.plot(curve.epochs, curve.values, color=BEST, linewidth=2.4, marker="o", markersize=3)
            handles.append(
                Line2D([], [], color=BEST, linewidth=2.4, label=f"best: {found.name_of(curve.lineage)[:50]}")
            )
    axes.autoscale_view()
    if spans_decades([value for curve in drawn for value in curve.values]):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=found.spec.monitor)
    axes.legend(handles=handles, frameon=False, fontsize=8)
    return figure


def _timeline(found: Found) -> "Figure | None":
    drawn = bars(found)
    if not drawn:
        return None
    zero = min(bar.start for bar in drawn)
    total_s = max((bar.end - zero).total_seconds() for bar in drawn) or 1.0
    unit, word = (1.0, "seconds") if total_s < 300 else (60.0, "minutes") if total_s < 3 * 3600 else (3600.0, "hours")
    rows = {key: place for place, key in enumerate(sorted({(bar.host, bar.lane) for bar in drawn}))}
    height = min(12.0, max(2.6, 1.7 + 0.42 * len(rows)))
    figure, axes = plt.subplots(figsize=(SIZE[0], height), dpi=DPI)
    axes.set_title(f"{TITLES['timeline']} of {found.name}")
    spots = {}
    for ended in ENDS:
        group = [bar for bar in drawn if bar.ended == ended]
        for bar in group:
            row = rows[bar.host, bar.lane]
            begin, end = ((at - zero).total_seconds() / unit for at in (bar.start, bar.end))
            spots[bar.trial.number] = (begin, end, row)
            axes.barh(row, end - begin, left=begin, height=0.72, color=ENDS[ended], edgecolor="white", linewidth=0.4)
            if (end - begin) * unit / total_s > LABELLED:
                axes.text((begin + end) / 2, row, f"#{bar.lineage.number:02d}", ha="center", va="center", fontsize=7)
    for bar in drawn:
        begin, end, row = spots[bar.trial.number]
        if bar.after is not None:
            _, left, other = spots[bar.after]
            axes.plot([left, begin], [other, row], color="#444444", linewidth=0.9, zorder=4)
        if bar.ended in KILLED:
            axes.plot(end, row, "x", color="black", markersize=6, markeredgewidth=1.6, zorder=5)
    axes.set_yticks(list(rows.values()), [f"{host}, worker {lane + 1}" for host, lane in rows])
    axes.set(xlabel=f"{word} since {zero:%Y-%m-%d %H:%M:%S}", ylim=(len(rows) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    handles: list[Any] = [
        Patch(color=ENDS[one], label=one.replace("_", " ")) for one in ENDS if any(bar.ended == one for bar in drawn)
    ]
    if any(bar.ended in KILLED for bar in drawn):
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="killed or stopped"))
    if any(bar.after is not None for bar in drawn):
        handles.append(Line2D([], [], color="#444444", label="resumed from its last checkpoint"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _rungs(found: Found) -> "Figure | None":
    steps = survival(found)
    if len(steps) < 2:
        return None
    figure, axes = _figure("rungs", found)
    places = range(len(steps))
    reached = axes.bar(places, [one for _, one, _ in steps], color="#cfdde6", label="reached it")
    axes.bar(places, [on for _, _, on in steps], color="#0072b2", width=0.5, label="went on from there")
    axes.bar_label(reached, fontsize=9)
    axes.set_xticks(list(places), [f"epoch {rung}" for rung, _, _ in steps])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="configurations")
    axes.legend(frameon=False)
    return figure


def _history(found: Found) -> "Figure | None":
    judged = sorted(found.ranking, key=lambda one: one.number)
    if not judged:
        return None
    figure, axes = _figure("history", found)
    numbers = [one.number for one in judged]
    values = np.array([float((one.best or {})["value"]) for one in judged])
    levels = [0, *rungs(found)]
    norm = BoundaryNorm([*levels, levels[-1] + 1], 256)
    dots = axes.scatter(
        numbers, values, c=[min(one.epochs, levels[-1]) for one in judged], cmap="viridis_r", norm=norm, s=22
    )
    so_far = np.minimum.accumulate(values) if found.spec.direction == "minimize" else np.maximum.accumulate(values)
    axes.step(numbers, so_far, where="post", color=BEST, label="best so far")
    if spans_decades(list(values)):
        axes.set_yscale("log")
    figure.colorbar(dots, ax=axes, label="epochs trained", ticks=levels)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="configuration", ylabel=f"best {found.spec.monitor}")
    axes.legend(frameon=False)
    return figure


def _importances(found: Found) -> "Figure | None":
    values = importances(found, as_optuna(found))
    if not values:
        return None
    figure, axes = _figure("importances", found)
    names = sorted(values, key=lambda name: values[name])
    shown = axes.barh(names, [values[name] for name in names], color="#0072b2", height=0.6)
    axes.bar_label(shown, fmt="%.2f", padding=3)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=f"share in being among the best tenth by {found.spec.monitor} (PED-ANOVA)", xlim=(0, 1.05))
    return figure


def _parallel(found: Found) -> "Figure | None":
    """Optuna's own is hard to read with log scales: ours has the ends of each axis, and the best on top."""
    names = varied(found)
    if len(names) < 2 or len(found.ranking) < 2:
        return None
    judged = found.ranking[::-1]  # the best are drawn last
    columns = [Scale.of(found, name) for name in names]
    values = np.array([float((one.best or {})["value"]) for one in judged])
    log = spans_decades(list(values))
    ends = np.log10(values) if log else values
    low, width = ends.min(), (np.ptp(ends) or 1.0)
    points = np.array([[scale.place(one.head.params.get(scale.name)) for scale in columns] for one in judged])
    points = np.column_stack([points, (ends - low) / width])
    figure, axes = _figure("parallel", found)
    places = np.arange(len(names) + 1)
    # Its rank says how dark a line is: values often lie close together, with a few far away.
    lines = LineCollection([np.column_stack([places, row]) for row in points], cmap="viridis_r", linewidths=1.3)
    lines.set_array(np.linspace(0.0, 1.0, len(judged)))
    lines.set_alpha(0.75)
    axes.add_collection(lines)
    axes.plot(places, points[-1], color=BEST, linewidth=2.4, label=f"best: #{judged[-1].number:02d}")
    for place, scale in enumerate(columns):
        for height, text in scale.ticks():
            axes.text(place + 0.03, height, text.replace("$", r"\$"), fontsize=8, va="center", bbox=_BEHIND)
    for height, value in ((0.0, values.min()), (1.0, values.max())):
        axes.text(places[-1] + 0.03, height, f"{value:.4g}", fontsize=8, va="center", bbox=_BEHIND)
    shown = [*(f"{scale.name}{' (log)' if scale.log else ''}" for scale in columns), f"best {found.spec.monitor}"]
    axes.set_xticks(places, shown)
    axes.set_yticks([])
    axes.set(xlim=(-0.1, len(names) + 0.45), ylim=(-0.06, 1.06))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.vlines(places, 0, 1, color="#555555", linewidth=1.0)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _slice(found: Found) -> "Figure | None":
    names = varied(found)
    if not names or len(found.ranking) < 2:
        return None
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(SIZE[0], 1.2 + 3.0 * rows), dpi=DPI, sharey=True, squeeze=False)
    figure.suptitle(f"{TITLES['slice']} of {found.name}", weight="bold", x=0.01, ha="left", fontsize=12)
    values = [float((one.best or {})["value"]) for one in found.ranking]
    levels = [0, *rungs(found)]
    norm = BoundaryNorm([*levels, levels[-1] + 1], 256)
    dots = None
    for axes, name in zip(grid.flat, names, strict=False):
        scale = Scale.of(found, name)
        given = [(one, value) for one, value in zip(found.ranking, values, strict=True) if name in one.head.params]
        at = [
            scale.choices.index(str(one.head.params[name])) if scale.choices else one.head.params[name]
            for one, _ in given
        ]
        epochs = [min(one.epochs, levels[-1]) for one, _ in given]
        dots = axes.scatter(at, [value for _, value in given], c=epochs, cmap="viridis_r", norm=norm, s=20)
        axes.set_xlabel(name)
        if scale.choices:
            axes.set_xticks(range(len(scale.choices)), [one[:12].replace("$", r"\$") for one in scale.choices])
        if scale.log:
            axes.set_xscale("log")
        if spans_decades(values):
            axes.set_yscale("log")
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel(f"best {found.spec.monitor}")
    assert dots is not None
    figure.colorbar(dots, ax=grid, label="epochs trained", ticks=levels)
    return figure


_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}
