"""The segment of a proof: checkpoints in a folder, a record of every batch, and a place to be killed at."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint, FolderStore, Manifest, Position, Report
from pipeline.checkpoint.retention import kept, referred
from pipeline.checkpoint.store import load_manifest
from pipeline.local import LocalSegment
from pipeline.proving.plan import Kill
from pipeline.proving.record import Record, entries
from pipeline.proving.variables import untracked
from pipeline.segment import Snapshot
from pipeline.signals import StopRequest


class ProvingSegment:
    """Implements `pipeline.segment.Segment`. The run must take a snapshot after each batch.

    All of them are recorded; written are those at the ends of epochs, at a stop, and where the kill wants one.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        stop: StopRequest,
        *,
        kill: Kill | None,
        strike: Callable[[Position], None],
        sources: Collection[Path],
        look_at: Collection[Position],
        on_resume: Callable[[Position | None], None],
    ) -> None:
        """`strike` is called where the kill is to come, and returns only if it lets training go on.

        `look_at` are positions where the loop's variables are recorded too; so they are at the first after a resume.
        """
        self._inner = LocalSegment(folder)
        self.trial = self._inner.trial
        self._store = FolderStore(folder)
        self._record = record
        self._stop = stop
        self._kill = kill
        self._strike = strike
        self._sources = sources
        self._look_at = look_at
        self._on_resume = on_resume
        self._look = False
        self._checkpoint_at = None if kill is None else kill.checkpoint_at

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        found = self._inner.resume()
        self._look = found is not None
        self._on_resume(None if found is None else found[0].position)
        return found

    def make_room(self, manifest: Manifest) -> bool:
        return self._inner.make_room(manifest)

    def commit(self, snapshot: Snapshot) -> None:
        snapshot.taken.settle()
        snapshot.taken.wait()
        at, report = snapshot.manifest.position, snapshot.report
        variables = untracked(self._sources) if self._look or at in self._look_at else None
        self._look = False
        self._record.add(at, entries(snapshot.state, report.metrics if report is not None else {}), variables)
        kill = self._kill if self._kill is not None and at >= self._kill.at else None
        if kill is not None and kill.before:
            self._strike(at)
        wanted = self._checkpoint_at is not None and at >= self._checkpoint_at
        if wanted or at.batch == 0 or self._stop.reason is not None:
            self._write(snapshot)
            self._checkpoint_at = None
        else:
            snapshot.taken.release()
        if kill is not None:
            self._kill = None
            self._strike(at)

    def checkpoint(self, name: str) -> Checkpoint:
        return self._inner.checkpoint(name)

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        pass

    def asked_to_stop(self) -> str | None:
        return "preempted" if self._stop.reason is not None else None

    def after_epoch(self, report: Report) -> str | None:
        return None

    def _write(self, snapshot: Snapshot) -> None:
        self._inner.commit(snapshot)
        previous = snapshot.state["loop"]["previous"]
        pinned = () if previous is None else (previous,)
        names = self._store.names()
        # The next stage reads what this one ended with, before it has a checkpoint that says so.
        keep = kept(names, best=None, pinned=pinned)
        files = referred(load_manifest(self._store, name) for name in keep)
        self._store.keep_only(keep, self.trial, files)
