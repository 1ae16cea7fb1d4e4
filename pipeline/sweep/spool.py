"""Checkpoints that wait on this machine's own disk while the store where they belong is away. They survive a kill."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint import FolderStore, Manifest, Store
from pipeline.checkpoint.store import load, load_manifest
from pipeline.segment import Snapshot, put


class Spool:
    """Those of one configuration, by the id of its MLflow run: in PIPELINE_SPOOL, or in the user's cache folder."""

    def __init__(self, run_id: str) -> None:
        self._folder = spool_folder() / run_id
        self._here = FolderStore(self._folder)

    def names(self) -> list[str]:
        """By position."""
        return self._here.names() if self._folder.is_dir() else []

    def put(self, snapshot: Snapshot) -> None:
        """Raises what the disk does."""
        put(self._here, snapshot, None)

    def check(self, name: str) -> Manifest:
        """Raises CorruptCheckpoint if it does not verify."""
        return load(self._here, name)[0]

    def copy_to(self, store: Store, name: str) -> Manifest:
        """Commits it to the store as it is."""
        source = self._here.get(name)

        def write(folder: Path) -> None:
            for file in source.iterdir():
                shutil.copyfile(file, folder / file.name)
                _sync(folder / file.name)

        store.put(name, write)
        return load_manifest(self._here, name)

    def remove(self, gone: Callable[[str], bool]) -> None:
        """Deletes those whose names say so."""
        names = self.names()
        if names:
            self._here.keep_only([name for name in names if not gone(name)], 10**12)


def spool_folder() -> Path:
    """Where those of all configurations are."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PIPELINE_SPOOL") or cache / "thaw" / "spool")


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
