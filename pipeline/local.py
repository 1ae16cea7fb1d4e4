"""Checkpoints in nothing but a folder, for `Run.local`."""

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


class LocalSegment:
    """A segment whose checkpoints lie in a folder; its number is one more than the last one's in there."""

    def __init__(self, folder: Path) -> None:
        self._store = FolderStore(folder)
        trials = [parsed[1] for name in self._store.names() if (parsed := parse_name(name)) is not None]
        self.trial = max(trials, default=-1) + 1
        self._parent: Manifest | None = None

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        found = load_newest(self._store, self._store.names())
        self._parent = None if found is None else found[0]
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

    def checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint.of(self._store, name)

    def moved(self, position: Position) -> None:
        pass

    def asked_to_stop(self) -> str | None:
        return None

    def after_epoch(self, report: Report) -> str | None:
        return None
