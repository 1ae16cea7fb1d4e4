"""One view of a study, for `rich` to print: from what is known of the study and of its workers, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.terminal.overview import Activity, Event, Overview, duration

COLOURS = {
    **dict.fromkeys(("lost", "preempted", "hang", "out_of_memory"), "yellow"),
    **dict.fromkeys(("diverged", "bug"), "red"),
    **dict.fromkeys(("promoted", "complete"), "green"),
}
SILENT_S = 30.0  # heartbeats come every 10 s; less than this says nothing
EVENTS = 6
BAR = 24
NAMED, LEAST, GAP = 20, 6, 2  # of columns: a name's, at least, any other's, and between two


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one worker.

    Attributes:
        worker: what tells it from the others.
        what: the configuration's name, or what it does instead of training.
        cells: the rest, by the headings of its columns.
    """

    worker: str
    what: str
    cells: Mapping[str, str] = field(default_factory=dict)


def row_of(activity: Activity, found: Overview) -> Row:
    """A worker as the study alone shows it."""
    silent = activity.silent_s is not None and activity.silent_s > SILENT_S
    left = None if activity.epoch_s is None else (activity.until - activity.epochs) * activity.epoch_s
    return Row(
        worker=activity.worker,
        what=found.names[activity.number],
        cells={
            "epochs": f"{activity.epochs}/{activity.until}",
            "s/epoch": "" if activity.epoch_s is None else f"{activity.epoch_s:.3g}",
            found.monitor: "" if activity.value is None else f"{activity.value:.4g}",
            "to rung": f"silent for {duration(activity.silent_s or 0.0)}" if silent else _time(left),
        },
    )


def frame(
    found: Overview | None, rows: Sequence[Row], *, width: int, height: int, note: str | None = None
) -> RenderableType:
    """At most `height` lines of `width`; what finds no room is left out, events first. `note` is what else matters."""
    parts: list[RenderableType] = [] if found is None else [_head(found), _progress(found, width), *_best(found, width)]
    room = height - len(parts) - (note is not None)
    if rows and room > 2:
        shown = rows[: room - 2]
        parts += [*([Text()] if parts else []), _workers(shown, width)]
        room -= len(shown) + 2
    if found is not None and found.events and room > 1:
        last = found.events[-min(EVENTS, room - 1) :]
        parts += [Text(), *(_cut(event_line(one, found.names, width)) for one in last)]
    if note is not None:
        parts.append(_cut(Text(note, style="bold yellow")))
    return Group(*parts)


def event_line(event: Event, names: Mapping[int, str], width: int) -> Text:
    """An event, as one line."""
    at, text = f"{event.at:%H:%M:%S}  ", f"  {event.text}"
    name = _shortened(names.get(event.number, f"#{event.number:02d}"), width - cell_len(at + text))
    return Text.assemble((at, "dim"), name, (text, COLOURS.get(event.kind, "default")))


def _head(found: Overview) -> Text:
    return _cut(Text.assemble("study ", (found.study, "bold"), f"  {found.standing}"))


def _progress(found: Overview, width: int) -> RenderableType:
    room = min(BAR, width - len(found.progress) - 2)
    if found.over or found.left is None or room < 5:
        return _cut(Text(found.progress))
    total = found.epochs + found.left.epochs
    bar = ProgressBar(total=max(total, 1.0), completed=found.epochs, width=room)
    table = Table.grid(padding=(0, 2))
    table.add_row(bar, Text(found.progress, no_wrap=True))
    return table


def _best(found: Overview, width: int) -> list[Text]:
    if found.best is None:
        return []
    result = f"  {found.monitor} {found.best.value:.6g} at epoch {found.best.epoch}"
    name = _shortened(found.names[found.best.number], width - cell_len(f"best {result}"))
    name.stylize("green")
    return [_cut(Text.assemble("best ", name, result))]


def _workers(rows: Sequence[Row], width: int) -> Table:
    """A line for each; where there is little room, the configuration's name is cut."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row.cells))
    cells = {one: [row.cells.get(one, "") for row in rows] for one in headings}
    widths = {one: max(LEAST, *(cell_len(text) for text in (one, *cells[one]))) for one in headings}
    worker = min(NAMED, max(cell_len(text) for text in ("worker", *(row.worker for row in rows))))
    while (room := width - worker - sum(widths[one] + GAP for one in headings) - GAP) < NAMED and len(headings) > 3:
        headings.pop(1)  # where the epochs stand first, and loss and time last
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    table.add_column("worker", no_wrap=True, overflow="ellipsis", width=worker)
    named = max(NAMED, *(cell_len(row.what) for row in rows))
    table.add_column("configuration", no_wrap=True, overflow="ellipsis", width=max(LEAST, min(named, room)))
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ellipsis", justify="right", width=widths[heading])
    for row in rows:
        table.add_row(*(Text(one) for one in (row.worker, row.what, *(row.cells.get(h, "") for h in headings))))
    return table


def _shortened(name: str, room: int) -> Text:
    """A configuration's name, cut rather than what is said of it; but it has to tell configurations apart."""
    return Text(cut(name, max(NAMED, room)))


def cut(text: str, width: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _time(left_s: float | None) -> str:
    return "" if left_s is None else duration(max(0.0, left_s))


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
