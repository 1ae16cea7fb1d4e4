"""How a segment's snapshots are saved: behind training, in order, and through failures of the stores."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from pipeline.checkpoint import Manifest, MlflowStore, Report, Torn
from pipeline.checkpoint.retention import kept, referred
from pipeline.checkpoint.snapshots import Written
from pipeline.checkpoint.store import load_manifest
from pipeline.checkpoint.writer import Writer
from pipeline.errors import CheckpointError, CorruptCheckpoint
from pipeline.segment import Snapshot, put
from pipeline.sweep.accepted import position_of, progress_from, trial_of
from pipeline.sweep.lineage import PAUSED, Lineage
from pipeline.sweep.patience import Patience, Unsaved, is_lasting
from pipeline.sweep.spool import Spool
from pipeline.sweep.study import Study
from pipeline.tracking import runs

log = logging.getLogger("pipeline")
LOG_EVERY_S = 1.0  # a call to MLflow costs as much as writing a small checkpoint, and nobody looks more often


class Saver:
    """Saves what the newest segment of a lineage has come to: checkpoint, study, metrics.

    Attributes:
        unsaved: what has ended the patience with a store that fails; from then on all stays in the spool.
    """

    def __init__(self, study: Study, lineage: Lineage, run_id: str, *, monitor: str, outage_s: float) -> None:
        self.store = MlflowStore(run_id)
        self.unsaved: Unsaved | None = None
        self._study = study
        self._lineage = lineage
        self._id = lineage.head._trial_id
        self._monitor = monitor
        self._began_s = time.time()
        self._run_id = run_id
        self._spool = Spool(run_id)
        self._patience = Patience(outage_s)
        self._logged: set[int] = set()
        self._logged_s = 0.0  # when
        self._history: Sequence[Report] = ()  # of the newest checkpoint that is saved
        self._reported = 0  # epochs that the study knows of
        self._kept: dict[str, Manifest] = {}  # the checkpoints that count and are kept, in order
        self._last: Snapshot | None = None
        self._writer: Writer[Snapshot] = Writer(self._write, self._log_rest)

    def resume(self, manifest: Manifest, before: Iterable[str]) -> None:
        """Goes on from a checkpoint, and completes what may have been cut off after its commit.

        `before` names those that count and are older.
        """
        self._kept = self._known(before) | {manifest.name: manifest}
        reported = self._lineage.head.intermediate_values
        for report in manifest.history:
            if report.epoch not in reported:
                self._study.report(self._id, report.epoch, report.metrics[self._monitor])
        self._reported = len(manifest.history)
        self._logged = runs.logged_epochs(self._run_id, self._monitor)
        self._history = manifest.history
        self._log()

    def take_from_spool(self) -> Lineage:
        """Commits what the segment before this one had to leave on this machine's disk; returns the lineage with it.

        That segment's trial has ended, and nothing can be added to it: so this one's says what of it counts.
        """
        names = [name for name in self._spool.names() if self._follows(name)]
        sound = []
        for name in names:
            try:
                sound.append(self._spool.check(name))
            except CorruptCheckpoint as error:
                log.warning("#%02d: what was left of %s does not verify: %s", self._lineage.number, name, error)
        for manifest in sound:
            if manifest.name not in self.store.names():
                self._spool.copy_to(self.store, manifest.name)
        if sound:
            log.info("#%02d: goes on from %s, which was left on this disk", self._lineage.number, sound[-1].name)
            self._study.set(self._id, "adopted", sound[-1].name)
            self._study.set(self._id, "progress", progress_from(sound[-1]))
            self._lineage = self._study.lineages()[self._lineage.number]
        self._spool.remove(lambda name: trial_of(name) < self._lineage.head.number)
        return self._lineage

    def _follows(self, name: str) -> bool:
        """Whether it continues what counts: written by the segment before this one, behind where this one starts."""
        if len(self._lineage.segments) < 2 or trial_of(name) != self._lineage.segments[-2].number:
            return False
        start = self._lineage.head.user_attrs["start"]
        return start is None or position_of(name) > position_of(start)

    def make_room(self, manifest: Manifest) -> bool:
        """Drops the snapshot that waits to be written, or waits for its turn if somebody will ask for it.

        Raises what went wrong with an earlier one, Fenced among it.
        """
        dropped = self._writer.make_room(lambda waiting: not _is_promised(waiting.manifest, manifest))
        if dropped is None:
            return False
        dropped.taken.release()
        best = dropped.manifest.best
        return best is not None and best.checkpoint == dropped.manifest.name

    def commit(self, snapshot: Snapshot) -> None:
        """Raises what went wrong with an earlier one, Fenced among it."""
        self._last = snapshot
        self._writer.submit(snapshot)

    def flush(self) -> None:
        """Returns when everything is saved, or `unsaved`. Raises what went wrong, Fenced among it."""
        self._settle()
        self._writer.flush()

    def close(self) -> None:
        """Returns when everything is saved. Raises what went wrong, Fenced and Unsaved among it."""
        self._settle()
        self._writer.close()
        if self.unsaved is not None:
            raise self.unsaved

    def _settle(self) -> None:
        """Training waits here, so nothing changes: what is still being copied can be finished."""
        if self._last is not None:
            self._last.taken.settle()

    def _write(self, snapshot: Snapshot) -> None:
        """Raises: Fenced, if another process has ended this trial."""
        name = snapshot.manifest.name
        try:
            snapshot.taken.wait()
            began_s, began_cpu_s = time.monotonic(), time.thread_time()
            self._save_or_spool(snapshot)
            took = Written(cpu_s=time.thread_time() - began_cpu_s, wall_s=time.monotonic() - began_s)
            snapshot.taken.written = took
        except Torn as error:
            log.warning("#%02d: checkpoint %s is dropped: %s", self._lineage.number, name, error)
        finally:
            snapshot.taken.release()
        self._drain()

    def _save_or_spool(self, snapshot: Snapshot) -> None:
        """Saves it; keeps it on this machine's disk if that fails, or if others wait there for their turn."""
        name = snapshot.manifest.name
        what = self._what(name)

        def save(*, again: bool) -> None:
            parent = next(reversed(self._kept.values()), None)
            self._save(name, lambda: put(self.store, snapshot, parent), again=again)

        if not self._spool.names() and self.unsaved is None:
            try:
                save(again=False)
                return
            except Exception as error:  # stores and servers raise what they like
                if is_lasting(error):
                    raise
                self._note(what, error)
        try:
            self._spool.put(snapshot)
        except Exception as error:  # noqa: BLE001  no room here either: it stays in memory, and training may have to wait
            log.warning("%s, nor kept on this machine's own disk: %s", what, error)
            while self.unsaved is None:
                time.sleep(self._patience.pause_s)
                try:
                    save(again=True)
                    self._patience.worked()
                    return
                except Exception as later:
                    if is_lasting(later):
                        raise
                    self._note(what, later)

    def _drain(self) -> None:
        """Saves what waits on this machine's disk, in order, until nothing does or another snapshot comes."""
        while self.unsaved is None and (names := self._spool.names()):
            name = names[0]
            try:
                self._save(name, lambda name=name: self._spool.copy_to(self.store, name), again=True)  # type: ignore[misc]
                self._spool.remove(lambda other, name=name: other == name)  # type: ignore[misc]
                self._patience.worked()
                log.info("#%02d: checkpoint %s is saved", self._lineage.number, name)
            except Exception as error:
                if is_lasting(error):
                    raise
                self._note(self._what(name), error)
                if self._writer.is_awaited(self._patience.pause_s):
                    return

    def _note(self, what: str, error: Exception) -> None:
        try:
            self._patience.failed(what, error)
        except Unsaved as unsaved:
            self.unsaved = unsaved

    def _what(self, name: str) -> str:
        return f"#{self._lineage.number:02d} goes on, but checkpoint {name} cannot be saved"

    def _save(self, name: str, commit: Callable[[], Manifest], *, again: bool) -> None:
        """Checkpoint first, then the study, then metrics: what the study says is there, is there.

        Metrics that a kill keeps from MLflow are in the checkpoint, and logged when it is resumed.
        `again`: a try before this one was cut short, anywhere.
        """
        manifest = self._kept.get(name)
        if manifest is None and again and name in self.store.names():  # committed, but the answer was lost
            manifest = load_manifest(self.store, name)
        if manifest is None:
            manifest = commit()
        self._kept[name] = manifest
        self._study.set(self._id, "progress", {**progress_from(manifest), "seconds": self._seconds(manifest)})
        for report in manifest.history[self._reported :]:  # snapshots before this one may have been dropped
            self._study.report(self._id, report.epoch, report.metrics[self._monitor])
        self._reported = len(manifest.history)
        self._history = manifest.history
        if time.monotonic() - self._logged_s >= LOG_EVERY_S:
            self._log()
        self._retain(manifest)

    def _seconds(self, manifest: Manifest) -> float:
        """From the segment's beginning to its last report: what its epochs have taken."""
        reported_s = manifest.history[-1].time_ms / 1000 if manifest.history else 0.0
        return max(0.0, reported_s - self._began_s)

    def _retain(self, manifest: Manifest) -> None:
        best = manifest.best.checkpoint if manifest.best is not None else None
        keep = kept(list(self._kept), best=best, pinned=self._pinned())
        remaining = {name: known for name, known in self._kept.items() if name in keep}
        try:
            self.store.keep_only(keep, self._lineage.head.number, referred(remaining.values()))
        except Exception as error:  # noqa: BLE001  stores raise what they like; what is to be kept is safe
            log.warning("#%02d: old checkpoints cannot be deleted: %s", self._lineage.number, error)
            return
        self._kept = remaining

    def _log(self) -> None:
        """Logs what MLflow has not; an epoch that had to be trained again stands there already."""
        new = [r for r in self._history if r.epoch not in self._logged]
        if new:
            runs.log_history(self._run_id, [(r.epoch, r.time_ms, {runs.EPOCH_S: r.seconds, **r.metrics}) for r in new])
        self._logged |= {r.epoch for r in new}
        self._logged_s = time.monotonic()

    def _log_rest(self) -> None:
        """Logs what was put off, once MLflow answers. What is in the spool has not come so far."""
        while self.unsaved is None:
            try:
                self._log()
                return
            except Exception as error:  # stores and servers raise what they like
                if is_lasting(error):
                    raise
                self._note(f"#{self._lineage.number:02d}: its metrics cannot be logged", error)
                time.sleep(self._patience.pause_s)

    def _pinned(self) -> set[str]:
        """Where the configuration paused, and what its stages ended with."""
        segments = self._lineage.segments
        rungs = {
            after.user_attrs["start"]
            for before, after in pairwise(segments)
            if before.user_attrs.get("ended") == PAUSED and after.user_attrs["start"] is not None
        }
        return rungs | {name for name in self._kept if position_of(name).is_stage_start}

    def _known(self, names: Iterable[str]) -> dict[str, Manifest]:
        """The manifests that can be read; the other checkpoints are set aside, for else they would be deleted."""
        found = {}
        for name in names:
            try:
                found[name] = load_manifest(self.store, name)
            except CheckpointError as error:
                log.warning("checkpoint %s cannot be read and is set aside: %s", name, error)
                self.store.set_aside(name, str(error))
        return found


def _is_promised(waiting: Manifest, newer: Manifest) -> bool:
    """Whether somebody will ask for it: it has the best weights so far, or is what a stage ended with."""
    best = newer.best
    return waiting.position.is_stage_start or (best is not None and best.checkpoint == waiting.name)
