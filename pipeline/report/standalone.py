"""The report of a study as one page that stands alone: it opens offline and loads nothing from anywhere."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs

from pipeline.experiment import flatten
from pipeline.report.found import Found, values_of
from pipeline.report.frames import seconds_of
from pipeline.report.pages import segment_cells
from pipeline.report.plots import plots
from pipeline.report.shapes import TITLES, descriptions
from pipeline.sweep.lineage import Lineage

ROWS = 1000  # so many configurations are shown, the best first; results.csv has all
TRACEBACKS, TRACEBACK_SIZE = 50, 6000
SEGMENT_COLUMNS = ("segment", "from", "to", "began", "took", "ended", "resumed", "host", "process")


def failed_first(found: Found) -> list[Lineage]:
    """The configurations that failed and have a run, by number: whose tracebacks the report shows."""
    failed = [one for number, one in found.lineages.items() if found.states[number] == "failed"]
    return [one for one in failed if one.run_id is not None][:TRACEBACKS]


def standalone(found: Found, tracebacks: Mapping[int, str]) -> str:
    """The whole page. `tracebacks` of failed configurations, by number."""
    shown = best_of(found, ROWS)
    drawn, words = plots(shown), descriptions(shown)
    parts = {
        "TITLE": _text(f"Study {found.name}"),
        "CSS": _asset("report.css"),
        "SUMMARY": summary(found),
        "CONTENTS": _contents(list(drawn), failures=bool(found.counts["failed"])),
        "PLOTS": "\n".join(_figure(name, words[name]) for name in drawn),
        "FAILURES": _failures(found, tracebacks),
        "DATA": _json({"plots": drawn, "scale": _scale(found), **_table(shown), "total": len(found.lineages)}),
        "PLOTLY": get_plotlyjs(),
        "JS": _asset("report.js"),
    }
    page = _asset("report.html").split("@@")  # what stands between two marks is text or a name, by turns
    return "".join(parts[one] if place % 2 else one for place, one in enumerate(page))


def best_of(found: Found, count: int) -> Found:
    """The study as if it had no more configurations than so many, the best: a page has to stay small enough to open."""
    if len(found.lineages) <= count:
        return found
    order = [*(one.number for one in found.ranking), *found.lineages]
    kept = sorted(list(dict.fromkeys(order))[:count])
    return replace(
        found,
        lineages={number: found.lineages[number] for number in kept},
        ranking=tuple(one for one in found.ranking if one.number in set(kept)),
    )


def _asset(name: str) -> str:
    return files("pipeline.report").joinpath("assets", name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value))


def _json(value: Any) -> str:
    """In a script element nothing but `</` could end it, and a comment's beginning hide its end."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def summary(found: Found) -> str:
    """What the study is and how it stands, as a list of terms and what they are."""
    spec = found.spec
    goals = ", ".join(f"{direction} {name}" for name, direction in spec.objectives.items())
    states = ", ".join(f"{count} {state}" for state, count in found.counts.most_common())
    whys = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in found.breaks.most_common())
    broken = f"{found.breaks.total()} times ({whys}), resumed {len(found.resumptions)} times"
    facts = {
        "experiment": spec.experiment,
        "goal": goals,
        "search": "one configuration" if spec.config is not None else f"{spec.sampler}, {spec.pruner}",
        "configurations": states or "none yet",
        "epochs trained": f"{found.epochs}, {found.saved} saved by pausing",
        "broken off": broken if whys else "never",
        "as of": f"{found.at:%Y-%m-%d %H:%M:%S}",
    }
    if len(found.lineages) > ROWS:
        facts["shown here"] = f"the best {ROWS:,} of {len(found.lineages):,}; results.csv has all"
    if found.ranking:
        best = found.ranking[0]
        values = ", ".join(f"{name} {value:.6g}" for name, value in values_of(best, spec).items())
        facts = {"best": f"{found.name_of(best)}: {values}", **facts}
    cells = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{cells}</dl>"


def _contents(names: Sequence[str], *, failures: bool) -> str:
    targets = {**{name: TITLES[name] for name in names}, "configurations": "Configurations"}
    if failures:
        targets["failures"] = "Failures"
    return " ".join(f'<a href="#{name}">{_text(title)}</a>' for name, title in targets.items())


def _figure(name: str, words: str) -> str:
    title = TITLES[name]
    return (
        f'<figure id="{name}"><h2>{title}</h2><div class="plot" data-plot="{name}" role="img" '
        f'aria-label="{title}" aria-describedby="{name}-words"></div>'
        f'<figcaption id="{name}-words">{_text(words)}</figcaption></figure>'
    )


def _failures(found: Found, tracebacks: Mapping[int, str]) -> str:
    failed = [one for number, one in found.lineages.items() if found.states[number] == "failed"]
    if not failed:
        return ""
    items = []
    for one in failed[:ROWS]:
        said = f"#{one.number:02d} {one.ended}: {one.head.user_attrs.get('error', 'no error was recorded')}"
        text = tracebacks.get(one.number)
        inner = f"<pre>{_text(text[-TRACEBACK_SIZE:])}</pre>" if text else "<p>There is no traceback.</p>"
        items.append(f"<details><summary>{_text(said)}</summary>{inner}</details>")
    return f'<section id="failures"><h2>Failures</h2>{"".join(items)}</section>'


def _table(found: Found) -> dict[str, Any]:
    """The configurations, best first, then those without a result."""
    judged = [one.number for one in found.ranking]
    order = {number: place for place, number in enumerate(judged)}
    lineages = sorted(found.lineages.values(), key=lambda one: (order.get(one.number, len(order)), one.number))
    configs = {one.number: flatten(one.config or {}) for one in lineages}
    params = list(dict.fromkeys(name for config in configs.values() for name in config))
    differing = [name for name in params if len({str(config.get(name)) for config in configs.values()}) > 1]
    shown = differing or params
    goals = list(found.spec.objectives)
    names = ["#", "state", *(f"best {name}" for name in goals), "at epoch", "epochs", "segments", "minutes", *shown]
    rows = []
    for one in lineages:
        values = values_of(one, found.spec)
        best = one.best or {}
        config = configs[one.number]
        cells = [
            one.number,
            found.states[one.number],
            *(_cell(values.get(name)) for name in goals),
            best.get("epoch"),
            one.epochs,
            len(one.segments),
            round(seconds_of(one) / 60, 3),
            *(_cell(config.get(name)) for name in shown),
        ]
        rows.append(
            {
                "name": found.name_of(one),
                "state": found.states[one.number],
                "cells": cells,
                "error": one.head.user_attrs.get("error"),
                "latest": one.progress["checkpoint"],
                "best": best.get("checkpoint"),
                "segments": [_segment(segment) for segment in one.segments],
            }
        )
    numbers = [all(isinstance(row["cells"][at], int | float | None) for row in rows) for at in range(len(names))]
    columns = [{"name": name, "number": number} for name, number in zip(names, numbers, strict=True)]
    return {"columns": columns, "rows": rows, "segmentColumns": SEGMENT_COLUMNS}


def _scale(found: Found) -> list[list[object]]:
    """A colour scale of values whose best end stands out, on light and on dark."""
    colours = ["#d55e00", "#c9a227", "#22a884", "#4a86c5", "#8c7fd0"]
    if found.spec.direction == "maximize":
        colours.reverse()
    return [[place / (len(colours) - 1), colour] for place, colour in enumerate(colours)]


def _cell(value: Any) -> Any:
    """What JSON can say, and a browser sort."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return str(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _segment(segment: FrozenTrial) -> list[str]:
    worker = segment.user_attrs.get("worker", {})
    return [*segment_cells(segment), worker.get("host", "").partition(" ")[0], str(worker.get("pid", ""))]
