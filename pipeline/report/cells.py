"""What a notebook shows of a study."""

import html

from pipeline.report import frames
from pipeline.report.found import Found, values_of
from pipeline.report.standalone import summary

SHOWN = 5


def line(found: Found) -> str:
    """A study in one line."""
    states = ", ".join(f"{count} {state}" for state, count in found.counts.most_common())
    said = f"<Study {found.name!r}: {states or 'no configuration yet'}"
    if found.ranking:
        best = found.ranking[0]
        values = ", ".join(f"{name} {value:.6g}" for name, value in values_of(best, found.spec).items())
        said += f"; best #{best.number:02d}, {values}"
    return said + ">"


def cell(found: Found) -> str:
    """A study as HTML: how it stands, and its best configurations."""
    heading = f"<h4>Study {html.escape(found.name)}</h4>"
    best = {one.number: one for one in found.ranking[:SHOWN]}
    if not best:
        return heading + summary(found)
    table = frames.configurations(best, (), over=found.search_over).loc[list(best)]
    goals = [f"best.{name}" for name in found.spec.objectives]
    params = [name for name in table if name.startswith("params.")]
    shown = table[["state", *params, "epochs", "best_epoch", *goals]]
    return heading + summary(found) + str(shown.to_html(border=0))
