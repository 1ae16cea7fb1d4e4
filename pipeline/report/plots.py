"""The plots of a study, interactive: figures for a notebook, and plotly's JSON for the report that stands alone."""

import html
import math
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import plotly.graph_objects as go

from pipeline.errors import UsageError
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

# viridis from its light end to its dark one, without what is invisible on white or on black
RUNG_COLOURS = ("#7ad151", "#22a884", "#2a788e", "#5a5fc7", "#8a4fbf", "#b23f9a", "#d3436e", "#f8765c")
BEST = "#d55e00"
FIFTHS = (  # of the ranking, best first
    ("#d55e00", "best fifth"),
    ("#c9a227", "second"),
    ("#22a884", "third"),
    ("#4a86c5", "fourth"),
    ("#8c7fd0", "last"),
)
DIGITS = 4  # what nobody can see only makes the page larger


def plots(found: Found) -> dict[str, dict[str, Any]]:
    """Data and layout of each plot there is something to show in."""
    return {name: _json(make()) for name, make in _makers(found).items()}


def figure(found: Found, name: str) -> go.Figure:
    """One of the plots, by its name in `TITLES`, with its title.

    Raises:
        UsageError: there is nothing to show in it yet.
    """
    make = _makers(found).get(name)
    if make is None:
        raise UsageError(f"study {found.name!r}: there is nothing to show in {TITLES[name].lower()!r} yet")
    return make().update_layout(title=f"{TITLES[name]}, study {html.escape(found.name)}")


def _makers(found: Found) -> dict[str, Callable[[], go.Figure]]:
    """What draws each plot that there is something to show in."""
    study = as_optuna(found)
    names = varied(found)
    compared = len(found.ranking) > 1
    visual, goal = optuna.visualization, f"best {found.spec.monitor}"
    made: dict[str, Callable[[], go.Figure]] = {}
    if curves(found):
        made["curves"] = lambda: _curves(found)
    if bars(found):
        made["timeline"] = lambda: _timeline(found)
    if len(rungs(found)) > 1:
        made["rungs"] = lambda: _rungs(found)
    if found.ranking:
        made["history"] = _quiet(lambda: visual.plot_optimization_history(study, target_name=goal))
    if importances(found, study):
        made["importances"] = lambda: _importances(found, study)
    if compared and len(names) > 1:
        made["parallel"] = lambda: _parallel(found)
    if compared and names:
        made["slice"] = _quiet(lambda: visual.plot_slice(study, params=names, target_name=goal))
    return made


def _quiet(make: Callable[[], go.Figure]) -> Callable[[], go.Figure]:
    """Optuna's plots are experimental, and say so each time."""

    def quietly() -> go.Figure:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return quietly


def _json(figure: go.Figure) -> dict[str, Any]:
    """Without the template and the title, which are the page's."""
    figure.update_layout(template="none", title=None)
    found: dict[str, Any] = _rounded(figure.to_plotly_json())
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if hasattr(value, "tolist"):
        return _rounded(value.tolist())
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def _curves(found: Found) -> go.Figure:
    drawn = curves(found)
    best = found.ranking[0].number if found.ranking else None
    figure = go.Figure()
    for place, level in enumerate(sorted({curve.rung for curve in drawn})):
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        for curve in drawn:
            if curve.rung == level and curve.lineage.number != best:
                x += [*curve.epochs, None]
                y += [*curve.values, None]
                numbers += [curve.lineage.number] * (len(curve.epochs) + 1)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                customdata=numbers,
                name=f"reached epoch {level}",
                mode="lines+markers",
                line={"color": RUNG_COLOURS[place % len(RUNG_COLOURS)], "width": 1.2},
                marker={"size": 3},
                hovertemplate="#%{customdata} epoch %{x}: %{y:.6g}<extra></extra>",
            )
        )
    for curve in drawn:
        if curve.lineage.number == best:
            figure.add_trace(
                go.Scatter(
                    x=curve.epochs,
                    y=curve.values,
                    name=f"best: #{best:02d}",
                    mode="lines+markers",
                    line={"color": BEST, "width": 3},
                    hovertemplate=f"#{best} epoch %{{x}}: %{{y:.6g}}<extra></extra>",
                )
            )
    log = spans_decades([value for curve in drawn for value in curve.values])
    figure.update_layout(
        xaxis={"title": "epoch"}, yaxis={"title": found.spec.monitor, "type": "log" if log else "linear"}
    )
    return figure


def _timeline(found: Found) -> go.Figure:
    drawn = bars(found)
    zero = min(bar.start for bar in drawn)
    rows = {(bar.host, bar.lane): f"{bar.host}, worker {bar.lane + 1}" for bar in drawn}
    spots = {
        bar.trial.number: (
            (bar.start - zero).total_seconds(),
            (bar.end - zero).total_seconds(),
            rows[bar.host, bar.lane],
        )
        for bar in drawn
    }
    figure = go.Figure()
    for ended, colour in ENDS.items():
        group = [bar for bar in drawn if bar.ended == ended]
        if not group:
            continue
        at = [spots[bar.trial.number] for bar in group]
        figure.add_trace(
            go.Bar(
                orientation="h",
                base=[begin for begin, _, _ in at],
                x=[end - begin for begin, end, _ in at],
                y=[row for _, _, row in at],
                customdata=[[bar.lineage.number, bar.trial.number] for bar in group],
                name=ended.replace("_", " "),
                marker={"color": colour},
                hovertemplate="#%{customdata[0]}, segment %{customdata[1]}: %{x:.1f} s from %{base:.1f} s<extra>"
                f"{ended.replace('_', ' ')}</extra>",
            )
        )
    killed = [spots[bar.trial.number] for bar in drawn if bar.ended in KILLED]
    links = [(spots[bar.after], spots[bar.trial.number]) for bar in drawn if bar.after is not None]
    if links:
        figure.add_trace(
            go.Scatter(
                x=[x for left, right in links for x in (left[1], right[0], None)],
                y=[y for left, right in links for y in (left[2], right[2], None)],
                mode="lines",
                line={"width": 1.5, "color": "#888888"},
                name="resumed from its last checkpoint",
                hoverinfo="skip",
            )
        )
    if killed:
        figure.add_trace(
            go.Scatter(
                x=[end for _, end, _ in killed],
                y=[row for _, _, row in killed],
                mode="markers",
                marker={"symbol": "x", "size": 9, "color": "#e00000"},
                name="killed or stopped",
                hoverinfo="skip",
            )
        )
    figure.update_layout(
        barmode="overlay",
        bargap=0.25,
        height=max(240, 130 + 44 * len(rows)),
        xaxis={"title": f"seconds since {zero:%Y-%m-%d %H:%M:%S}"},
        yaxis={"autorange": "reversed", "categoryorder": "category ascending", "automargin": True},
    )
    return figure


def _rungs(found: Found) -> go.Figure:
    steps = survival(found)
    names = [f"epoch {rung}" for rung, _, _ in steps]
    figure = go.Figure(
        [
            go.Bar(x=names, y=[one for _, one, _ in steps], name="reached it", marker={"color": "#8fb3c9"}),
            go.Bar(x=names, y=[on for _, _, on in steps], name="went on from there", marker={"color": "#0072b2"}),
        ]
    )
    figure.update_layout(yaxis={"title": "configurations"}, barmode="group")
    return figure


def _parallel(found: Found) -> go.Figure:
    """Optuna's has a trace for each configuration, which a browser draws for seconds where there are a thousand."""
    scales = [Scale.of(found, name) for name in varied(found)]
    values = [float((one.best or {})["value"]) for one in found.ranking]
    log = spans_decades(values)
    ends = [math.log10(value) if log else value for value in values]
    low, width = min(ends), (max(ends) - min(ends)) or 1.0
    figure = go.Figure()
    parts, opacity = min(len(FIFTHS), len(values)), 0.9 if len(values) < 100 else 0.4
    for part in reversed(range(parts)):  # the best are drawn last
        x: list[int | None] = []
        y: list[float | None] = []
        texts: list[str | None] = []
        for place in range(part * len(values) // parts, (part + 1) * len(values) // parts):
            one, params = found.ranking[place], found.ranking[place].head.params
            x += [*range(len(scales) + 1), None]
            at = [scale.place(params.get(scale.name)) for scale in scales]
            y += [*(None if math.isnan(height) else height for height in at), (ends[place] - low) / width, None]
            said = [f"{scale.name} {_short(params.get(scale.name))}" for scale in scales]
            texts += [*(f"#{one.number} {text}" for text in said), f"#{one.number} {values[place]:.6g}", None]
        colour, name = FIFTHS[part]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=texts,
                hoverinfo="text",
                mode="lines",
                name=name,
                opacity=opacity,
                line={"color": colour, "width": 1.4},
            )
        )
    marks = [(place, height, text) for place, scale in enumerate(scales) for height, text in scale.ticks()]
    marks += [(len(scales), 0.0, f"{min(values):.4g}"), (len(scales), 1.0, f"{max(values):.4g}")]
    figure.add_trace(
        go.Scatter(
            x=[place for place, _, _ in marks],
            y=[height for _, height, _ in marks],
            text=[f"&nbsp;{html.escape(text)}" for _, _, text in marks],
            mode="text",
            textposition="middle right",
            hoverinfo="skip",
            showlegend=False,
        )
    )
    names = [*(f"{scale.name}{' (log)' if scale.log else ''}" for scale in scales), f"best {found.spec.monitor}"]
    figure.update_layout(
        xaxis={"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.1, len(scales) + 0.5]},
        yaxis={"visible": False, "range": [-0.06, 1.06]},
        legend={"traceorder": "reversed"},
    )
    return figure


def _short(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value)[:30])


def _importances(found: Found, study: optuna.Study) -> go.Figure:
    values = importances(found, study)
    names = sorted(values, key=lambda name: values[name])
    shown = [values[name] for name in names]
    text = [f"{value:.2f}" for value in shown]
    figure = go.Figure(go.Bar(orientation="h", x=shown, y=names, text=text, marker={"color": "#0072b2"}))
    figure.update_layout(
        xaxis={"title": "share in being among the best tenth"}, yaxis={"automargin": True}, showlegend=False
    )
    return figure
