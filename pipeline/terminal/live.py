"""The live view of a command that trains: drawn by a thread of its own, never in the way of what it shows.

Where training stands is read from the workers' shared memory, all else from the study, now and then. This thread alone
writes to the terminal: what workers and this process write meanwhile is printed above the view.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import RenderableType

from pipeline.engines.output import Output
from pipeline.signals import StopRequest
from pipeline.sweep.place import Place, SharedPlace
from pipeline.terminal.canvas import Canvas
from pipeline.terminal.frame import Row, frame
from pipeline.terminal.overview import Overview, duration
from pipeline.terminal.printer import DivertedLog, Printer
from pipeline.terminal.reader import Reader

log = logging.getLogger("pipeline")
DRAW_S = 0.5
RATE_S = 10.0  # over which a worker's speed is measured
CLOSE_S = 5.0  # a terminal that takes nothing more is not waited for


@dataclass(kw_only=True)
class _Slot:
    """A worker, as far as it is shown; another may have taken its place.

    Attributes:
        seen: when how many batches had been trained, over the last seconds.
    """

    place: SharedPlace
    ended: bool = False
    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def rate(self, batches: int, now_s: float) -> float | None:
        """Batches a second; None until it has moved."""
        self.seen.append((now_s, batches))
        while len(self.seen) > 2 and now_s - self.seen[0][0] > RATE_S:
            self.seen.popleft()
        then_s, before = self.seen[0]
        return (batches - before) / (now_s - then_s) if batches > before else None


class LiveView:
    """Shows a study and the workers of this command on stderr, from `__enter__` to `__exit__`.

    Implements `engines.local.Watcher`.
    """

    def __init__(self, read: Callable[[], Overview], stop: StopRequest, *, deadline_s: float | None = None) -> None:
        """`deadline_s` is when the command stops by itself, on the machine's clock."""
        self._read, self._stop, self._deadline_s = read, stop, deadline_s
        self._slots: dict[int, _Slot] = {}
        self._printer = Printer()
        self._log = DivertedLog(self._printer)
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)

    def __enter__(self) -> "LiveView":
        self._log.divert()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._printer.close()
        self._thread.join(CLOSE_S)
        self._log.lead_back()
        sys.stderr.write(self._printer.text())  # if the view has failed

    def started(self, slot: int, place: SharedPlace, output: Output) -> None:
        self._slots[slot] = _Slot(place=place)
        self._printer.add(output)

    def ended(self, slot: int) -> None:
        self._slots[slot].ended = True

    def _run(self) -> None:
        try:
            self._draw()
        except Exception as error:  # noqa: BLE001  a view that fails must not end what it shows
            self._log.lead_back()
            log.warning("the live view has failed, and training goes on without: %r", error)
            self._printer.pass_on()

    def _draw(self) -> None:
        canvas, reader = Canvas(sys.stderr), Reader(self._read)
        try:
            while self._printer.take(DRAW_S):
                width, height = canvas.size
                canvas.draw(self._frame(reader, width, height), self._printer.text())
        finally:
            reader.close()
        self._printer.finish()
        canvas.draw(None, self._printer.text())

    def _frame(self, reader: Reader[Overview], width: int, height: int) -> RenderableType:
        found = reader.found
        rows = [self._row(number, slot, found) for number, slot in sorted(self._slots.copy().items())]
        return frame(found, rows, width=width, height=height, note=self._note(reader))

    def _row(self, number: int, slot: _Slot, found: Overview | None) -> Row:
        worker, place = str(number + 1), slot.place.read()
        if slot.ended:
            return Row(worker=worker, what="has ended")
        if place is None:
            slot.seen.clear()
            return Row(worker=worker, what="looks for work" if slot.place.has_begun else "starts")
        return row_of(worker, place, slot.rate(place.batches, time.monotonic()), found)

    def _note(self, reader: Reader[Overview]) -> str | None:
        if self._stop.at_once:
            return "stopping at once"
        if self._stop.reason is not None:
            return f"stopping ({self._stop.reason}): takes checkpoints; Ctrl-C once more: at once"
        if reader.away_s is not None:
            return f"the study's database has not answered for {duration(reader.away_s)}"
        if self._deadline_s is not None:
            return f"--timeout: stops in {duration(max(0.0, self._deadline_s - time.monotonic()))}, resumably"
        return None


def row_of(worker: str, place: Place, rate: float | None, found: Overview | None) -> Row:
    """A worker as its shared memory shows it."""
    epoch_s = place.epoch_s if place.epoch_s is not None or found is None else found.epoch_s
    left_s = None if epoch_s is None else (place.until - place.epochs) * epoch_s - place.elapsed_s
    names = {} if found is None else found.names
    return Row(
        worker=worker,
        what=names.get(place.configuration, f"#{place.configuration:02d}"),
        cells={
            "epochs": f"{place.epochs}/{place.until}",
            "batch": str(place.batch) if place.batch else "",
            "batches/s": "" if rate is None else f"{rate:.3g}",
            place.loss_name or "loss": "" if place.loss is None else f"{place.loss:.4g}",
            "to rung": "" if left_s is None else duration(max(0.0, left_s)),
        },
    )
