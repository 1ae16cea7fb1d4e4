"""Checkpoints in nothing but a folder, for `Run.local`."""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.checkpoint import (
    Checkpoint,
    FolderStore,
    Manifest,
    Report,
    checkpoint_name,
    load_newest,
    parse_name,
    save,
)
from pipeline.segment import Snapshot


class LocalSegment:
    """A segment whose checkpoints lie in a folder; its number is one more than the last one's in there."""

    def __init__(self, folder: Path) -> None:
        self._store = FolderStore(folder)
        trials = [parsed[1] for name in self._store.names() if (parsed := parse_name(name)) is not None]
        self.trial = max(trials, default=-1) + 1

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        return load_newest(self._store, self._store.names())

    def commit(self, snapshot: Snapshot, report: Report | None) -> None:
        name = checkpoint_name(snapshot.manifest.position, self.trial)
        with tempfile.TemporaryDirectory() as scratch:
            save(Path(scratch), snapshot.state, snapshot.manifest)
            self._store.put(name, Path(scratch))

    def checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint.of(self._store, name)

    def asked_to_stop(self) -> str | None:
        return None

    def after_epoch(self, report: Report) -> str | None:
        return None
