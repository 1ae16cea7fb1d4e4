"""A segment of a configuration: an Optuna trial, its MLflow run and its checkpoints, behind one `Segment`."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial

from pipeline.checkpoint import (
    Checkpoint,
    Manifest,
    MlflowStore,
    Position,
    Report,
    Torn,
    load_newest,
    parse_name,
)
from pipeline.checkpoint.environment import changes, environment
from pipeline.checkpoint.pace import Every
from pipeline.checkpoint.retention import kept, referred
from pipeline.checkpoint.snapshots import Written
from pipeline.checkpoint.store import load_manifest
from pipeline.checkpoint.writer import Writer
from pipeline.errors import CheckpointError
from pipeline.segment import Snapshot, Stopped, put
from pipeline.signals import StopRequest
from pipeline.sweep.lineage import PAUSED, PREEMPTED, PRUNED, Lineage, progress_of
from pipeline.sweep.patience import patiently
from pipeline.sweep.pulse import Heartbeats, Pulse
from pipeline.sweep.samplers import StudyView
from pipeline.sweep.storage import HEARTBEAT_S
from pipeline.sweep.study import Study
from pipeline.tracking import runs


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How checkpoints are kept.

    Attributes:
        checkpoint_every_s: seconds of training between checkpoints inside an epoch.
        keep_bytes: what the checkpoints of the study may take; None for any amount.
        outage_s: how long a store that fails is tried again.
    """

    checkpoint_every_s: Every = 60.0
    keep_bytes: int | None = None
    outage_s: float = 60.0


log = logging.getLogger("pipeline")
EXACT = "exact"


class TrialSegment:
    """The newest segment of a lineage, claimed by this process. Implements `pipeline.segment.Segment`."""

    def __init__(
        self,
        study: Study,
        lineage: Lineage,
        *,
        run_id: str,
        view: StudyView,
        stop: StopRequest,
        pulse: Pulse,
        outage_s: float,
    ) -> None:
        self.trial = lineage.head.number
        self._id = lineage.head._trial_id
        self._study = study
        self._spec = study.spec
        self._lineage = lineage
        self._run_id = run_id
        self._store = MlflowStore(run_id)
        self._view = view
        self._stop = stop
        self._outage_s = outage_s
        self.position: list[int] | None = None  # stage, epoch and batch where training stands, once it has moved
        self._pulse = pulse
        self._epochs_s: list[float] = []
        self._epoch_began_s: float | None = None  # None inside an epoch that another segment has begun
        self._logged: set[int] = set()
        self._reported = 0  # epochs that the study knows of
        self._kept: dict[str, Manifest] = {}  # the checkpoints that count and are kept, in order
        self._last: Snapshot | None = None
        self._writer: Writer[Snapshot] = Writer(self._write)
        name = f"#{lineage.number:02d}"
        self._heartbeats = Heartbeats(lambda: study.beat(self._id), pulse, HEARTBEAT_S, name)

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        found = self._resume()
        if found is not None:
            times_s = [report.time_ms / 1000 for report in found[0].history]
            self._epochs_s = [after - before for before, after in pairwise(times_s)]  # pauses too: rather too long
        self._epoch_began_s = time.monotonic() if found is None or found[0].position.batch == 0 else None
        self._pulse.begin()
        return found

    def _resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        """Raises:
        CheckpointError: there should be a checkpoint and none of them verifies.
        Stopped: the checkpoint ends an epoch at which training stops, and that was cut off.
        """
        accepted = accepted_checkpoints(self._lineage.segments, self._store.names())
        if not accepted and self._lineage.head.user_attrs["start"] is None:
            return None
        found = load_newest(self._store, accepted)
        if found is None:
            raise CheckpointError(
                f"configuration #{self._lineage.number:02d}: none of its {len(accepted)} checkpoints verifies "
                f"(MLflow run {self._run_id}); it cannot be continued, sweep again under another --study"
            )
        manifest = found[0]
        self._kept = dict(self._known(accepted[: accepted.index(manifest.name)])) | {manifest.name: manifest}
        self._label(manifest)
        # What came after the commit of its last epoch may have been cut off: report, metrics, decision.
        reported = self._lineage.head.intermediate_values
        for report in manifest.history:
            if report.epoch not in reported:
                self._study.report(self._id, report.epoch, report.metrics[self._spec.monitor])
        self._reported = len(manifest.history)
        self._logged = runs.logged_epochs(self._run_id, self._spec.monitor)
        self._log(manifest.history)
        decide = manifest.position.batch == 0 and not found[1]["loop"]["done"]
        ended = self.after_epoch(manifest.history[-1]) if decide else None
        if ended is not None:
            raise Stopped(ended)
        return found

    def _label(self, manifest: Manifest) -> None:
        """Says whether this resume is exact, on the trial, and on the run whether all of them were."""
        now = {**environment(), "code": self._spec.code, "data": self._spec.data}
        changed = changes(manifest.environment, now)
        label = f"best effort ({changed})" if changed else EXACT
        if changed:
            log.warning("#%02d resumes by best effort, not exactly: %s", self._lineage.number, changed)
        self._study.set(self._id, "resumed", label)
        before = [segment.user_attrs.get("resumed", EXACT) for segment in self._lineage.segments]
        inexact = [one for one in (*before, label) if one != EXACT]
        runs.set_tags(self._run_id, {"resumed": inexact[-1] if inexact else EXACT})

    def _known(self, names: Iterable[str]) -> Iterator[tuple[str, Manifest]]:
        """The manifests that can be read; the other checkpoints are set aside, for else they would be deleted."""
        for name in names:
            try:
                yield name, load_manifest(self._store, name)
            except CheckpointError as error:
                log.warning("checkpoint %s cannot be read and is set aside: %s", name, error)
                self._store.set_aside(name, str(error))

    def make_room(self, manifest: Manifest) -> bool:
        """Drops the snapshot that waits to be written, or waits for its turn if somebody will ask for it.

        Raises what went wrong with an earlier one, Fenced among it.
        """
        with self._pulse.resting():
            dropped = self._writer.make_room(lambda waiting: not _is_promised(waiting.manifest, manifest))
        if dropped is None:
            return False
        dropped.taken.release()
        best = dropped.manifest.best
        return best is not None and best.checkpoint == dropped.manifest.name

    def commit(self, snapshot: Snapshot) -> None:
        """Hands it to the writer; training goes on. Raises what went wrong with an earlier one, Fenced among it."""
        self._last = snapshot
        self._writer.submit(snapshot)

    def checkpoint(self, name: str) -> Checkpoint:
        self._flush()
        return Checkpoint.of(self._store, name)

    def close(self) -> None:
        """Returns when everything is committed. Raises what went wrong, Fenced among it."""
        self._pulse.end()
        self._settle()
        try:
            self._writer.close()
        finally:
            self._heartbeats.close()

    def _flush(self) -> None:
        self._settle()
        with self._pulse.resting():
            self._writer.flush()

    def _settle(self) -> None:
        """Training waits here, so nothing changes: what is still being copied can be finished."""
        if self._last is not None:
            self._last.taken.settle()

    def _write(self, snapshot: Snapshot) -> None:
        """Raises: Fenced, if another process has ended this trial; Unsaved, for what stores and servers do."""
        name = snapshot.manifest.name
        try:
            snapshot.taken.wait()
            began_s, began_cpu_s = time.monotonic(), time.thread_time()
            tries = count()
            patiently(
                f"#{self._lineage.number:02d}: checkpoint {name}",
                lambda: self._save(snapshot, again=next(tries) > 0),
                self._outage_s,
            )
            took = Written(cpu_s=time.thread_time() - began_cpu_s, wall_s=time.monotonic() - began_s)
            snapshot.taken.written = took
        except Torn as error:
            log.warning("#%02d: checkpoint %s is dropped: %s", self._lineage.number, name, error)
        finally:
            snapshot.taken.release()

    def _save(self, snapshot: Snapshot, *, again: bool) -> None:
        """Checkpoint first, then the study, then metrics: what the study says is there, is there.

        `again`: a try before this one was cut short, anywhere.
        """
        name = snapshot.manifest.name
        manifest = self._kept.get(name)
        if manifest is None and again and name in self._store.names():  # committed, but the answer was lost
            manifest = load_manifest(self._store, name)
        if manifest is None:
            manifest = put(self._store, snapshot, next(reversed(self._kept.values()), None))
        self._kept[name] = manifest
        best = manifest.best
        progress = {
            "checkpoint": manifest.name,
            "epochs": manifest.history[-1].epoch if manifest.history else 0,
            "best": best and {"epoch": best.epoch, "value": best.value, "checkpoint": best.checkpoint},
        }
        self._study.set(self._id, "progress", progress)
        for report in manifest.history[self._reported :]:  # snapshots before this one may have been dropped
            self._study.report(self._id, report.epoch, report.metrics[self._spec.monitor])
        self._reported = len(manifest.history)
        self._log(manifest.history)
        self._retain(manifest)

    def _retain(self, manifest: Manifest) -> None:
        best = manifest.best.checkpoint if manifest.best is not None else None
        keep = kept(list(self._kept), best=best, pinned=self._pinned())
        remaining = {name: known for name, known in self._kept.items() if name in keep}
        try:
            self._store.keep_only(keep, self.trial, referred(remaining.values()))
        except Exception as error:  # noqa: BLE001  stores raise what they like; what is to be kept is safe
            log.warning("#%02d: old checkpoints cannot be deleted: %s", self._lineage.number, error)
            return
        self._kept = remaining

    def _pinned(self) -> set[str]:
        """Where the configuration paused, and what its stages ended with."""
        segments = self._lineage.segments
        rungs = {
            after.user_attrs["start"]
            for before, after in pairwise(segments)
            if before.user_attrs.get("ended") == PAUSED and after.user_attrs["start"] is not None
        }
        return rungs | {name for name in self._kept if _position(name).is_stage_start}

    def moved(self, position: Position) -> None:
        if position.batch == 0:
            now_s = time.monotonic()
            if self._epoch_began_s is not None:
                self._epochs_s.append(now_s - self._epoch_began_s)
            self._epoch_began_s = now_s
        self.position = [position.stage, position.epoch, position.batch]
        self._pulse.moved(self._epochs_s)

    def asked_to_stop(self) -> str | None:
        return PREEMPTED if self._stop.reason is not None else None

    def after_epoch(self, report: Report) -> str | None:
        if report.epoch >= self._spec.max_epochs:
            return None
        if report.epoch >= self._lineage.until:
            return PAUSED
        if self._lineage.head.user_attrs.get("reopened"):
            return None  # its user has given it these epochs; the rule that pruned it would prune it again
        if isinstance(self._view.pruner, NopPruner):
            return None
        self._flush()  # the pruner looks at what the study says
        trial = self._study.storage.get_trial(self._id)
        return PRUNED if self._view.pruner.prune(self._view, trial) else None

    def _log(self, reports: Iterable[Report]) -> None:
        """Logs what MLflow has not; an epoch that had to be trained again stands there already."""
        new = [r for r in reports if r.epoch not in self._logged]
        runs.log_history(self._run_id, [(r.epoch, r.time_ms, r.metrics) for r in new])
        self._logged |= {r.epoch for r in new}


def _is_promised(waiting: Manifest, newer: Manifest) -> bool:
    """Whether somebody will ask for it: it has the best weights so far, or is what a stage ended with."""
    best = newer.best
    return waiting.position.is_stage_start or (best is not None and best.checkpoint == waiting.name)


def accepted_checkpoints(segments: tuple[FrozenTrial, ...], names: list[str]) -> list[str]:
    """Of the checkpoints in a store those that count: written by an accepted segment, up to what its trial says.

    Whatever else is there was written by a worker that had lost its trial, or was never committed.
    """
    newest = {}
    for segment in segments:
        committed = progress_of(segment)["checkpoint"]
        if committed is not None and committed != segment.user_attrs["start"]:
            newest[segment.number] = _position(committed)
    return [name for name in names if (written := parse_name(name)) and _counts(written, newest)]


def _counts(written: tuple[Position, int], newest: Mapping[int, Position]) -> bool:
    position, trial = written
    return trial in newest and position <= newest[trial]


def _position(name: str) -> Position:
    parsed = parse_name(name)
    assert parsed is not None, name
    return parsed[0]
