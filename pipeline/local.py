"""Checkpoints in nothing but a folder, for `Run.local`, and a bar that shows how far training has come."""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoint import (
    Checkpoint,
    FolderStore,
    Manifest,
    Position,
    Report,
    load_newest,
    parse_name,
)
from pipeline.segment import Snapshot, put

DRAW_S = 0.2


class LocalSegment:
    """A segment whose checkpoints lie in a folder; its number is one more than the last one's in there.

    With `max_epochs`, a bar shows how many of them are done.
    """

    def __init__(self, folder: Path, max_epochs: int | None = None) -> None:
        self._store = FolderStore(folder)
        trials = [parsed[1] for name in self._store.names() if (parsed := parse_name(name)) is not None]
        self.trial = max(trials, default=-1) + 1
        self._parent: Manifest | None = None
        self._max_epochs = max_epochs
        self._bar: Bar | None = None

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        found = load_newest(self._store, self._store.names())
        self._parent = None if found is None else found[0]
        if self._max_epochs is not None and is_watched():
            self._bar = Bar(self._max_epochs, 0 if found is None else found[0].position.epoch)
        return found

    def make_room(self, manifest: Manifest) -> bool:
        return False

    def commit(self, snapshot: Snapshot) -> None:
        try:
            snapshot.taken.settle()
            snapshot.taken.wait()
            self._parent = put(self._store, snapshot, self._parent)
        finally:
            snapshot.taken.release()
        if self._bar is not None and snapshot.report is not None:
            self._bar.reported(snapshot.report, snapshot.manifest.position.epoch)

    def checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint.of(self._store, name)

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        if self._bar is not None:
            self._bar.moved(position)

    def asked_to_stop(self) -> str | None:
        return None

    def after_epoch(self, report: Report) -> str | None:
        return None


class Bar:
    """Epochs as a progress bar, drawn from the first sign of life on."""

    def __init__(self, max_epochs: int, begun: int) -> None:
        self._max_epochs, self._begun = max_epochs, begun
        self._bar: Any = None
        self._metrics = ""
        self._drawn_s = 0.0

    def moved(self, position: Position) -> None:
        """Training has come to here."""
        now_s = time.monotonic()
        if position.batch and now_s - self._drawn_s >= DRAW_S:
            self._drawn_s = now_s
            self._draw(position.epoch, f"batch {position.batch}")

    def reported(self, report: Report, epoch: int) -> None:
        """So many epochs are done."""
        self._metrics = ", ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
        self._draw(epoch, "")
        if epoch >= self._max_epochs:
            self._bar.close()

    def _draw(self, epoch: int, batch: str) -> None:
        if self._bar is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without ipywidgets it is drawn as text, which is all right
                from tqdm.auto import tqdm

                self._bar = tqdm(total=self._max_epochs, initial=self._begun, unit="epoch")
        self._bar.n = epoch
        self._bar.set_postfix_str(", ".join(part for part in (batch, self._metrics) if part))


def is_watched() -> bool:
    """Whether somebody may be looking: at a terminal, or at a notebook, whose output is none."""
    shell = sys.modules.get("ipykernel.zmqshell")
    return sys.stderr.isatty() or (shell is not None and shell.ZMQInteractiveShell.initialized())
