"""`status --watch`: a view of studies from outside, by what their database says, until it is asked to stop."""

import sys
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.signals import StopRequest
from pipeline.terminal.canvas import PLAIN, Canvas, is_terminal
from pipeline.terminal.frame import frame, row_of
from pipeline.terminal.overview import Overview, duration
from pipeline.terminal.reader import Reader

DRAW_S = 0.5


def watch(read: Callable[[], Sequence[Overview]], stop: StopRequest, *, full: bool) -> None:
    """Returns when SIGINT or SIGTERM has come. `full`: there is one study, and it is shown in full.

    Where nothing can be drawn, a line is printed for each study whenever its standing has changed.
    """
    canvas = Canvas(sys.stdout) if is_terminal(sys.stdout) else None
    said: set[str] = set()
    with stop.deferred():
        reader = Reader(read)
        stopped = False
        while not stopped:
            stopped = stop.wait(DRAW_S)  # and then once more, over the ^C that the terminal has shown
            if canvas is not None:
                width, height = canvas.size
                canvas.draw(_picture(reader, full=full, width=width, height=height))
                continue
            new = [text for text in (line(one).plain for one in reader.found or ()) if text not in said]
            said.update(new)
            for text in new:
                print(text, flush=True)
        reader.close()


def line(found: Overview) -> Text:
    """A study in one line."""
    return Text.assemble("study ", (found.study, "bold"), f": {found.progress}; {found.standing}")


def whole(found: Overview, *, width: int = PLAIN, height: int = 100, note: str | None = None) -> RenderableType:
    """A study in full, as it is seen from outside."""
    if note is None and not found.over and not found.activities:
        note = f"nobody trains it; to go on:  python -m pipeline resume --study {found.study}"
    rows = [row_of(activity, found) for activity in found.activities]
    return frame(found, rows, width=width, height=height, note=note)


def _picture(reader: Reader[Sequence[Overview]], *, full: bool, width: int, height: int) -> RenderableType:
    away_s = reader.away_s
    note = None if away_s is None else f"the study database has not answered for {duration(away_s)}"
    if reader.found is None:
        return Text(note or "reads the study database")
    if full:
        return whole(reader.found[0], width=width, height=height, note=note)
    lines = [line(one) for one in reader.found][: height - (note is not None)]
    for text in lines:
        text.no_wrap, text.overflow = True, "ellipsis"
    return Group(*(lines or [Text("no study yet")]), *([Text(note)] if note is not None else []))
