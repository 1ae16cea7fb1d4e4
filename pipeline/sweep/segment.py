"""A segment of a configuration: an Optuna trial, its MLflow run and its checkpoints, behind one `Segment`."""

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial

from pipeline.checkpoint import (
    Checkpoint,
    Manifest,
    MlflowStore,
    Position,
    Report,
    load_newest,
    parse_name,
    save,
)
from pipeline.checkpoint.environment import changes, environment
from pipeline.checkpoint.retention import kept
from pipeline.checkpoint.writer import Writer
from pipeline.errors import CheckpointError, EncodeError, ThawError
from pipeline.segment import Snapshot, Stopped
from pipeline.signals import StopRequest
from pipeline.sweep.lineage import PAUSED, PREEMPTED, PRUNED, Lineage, progress_of
from pipeline.sweep.samplers import StudyView
from pipeline.sweep.storage import HEARTBEAT_S
from pipeline.sweep.study import Fenced, Study
from pipeline.tracking import runs


class Unsaved(ThawError):
    """What training has come to could not be kept: no fault of the configuration's."""


log = logging.getLogger("pipeline")
EXACT = "exact"


class TrialSegment:
    """The newest segment of a lineage, claimed by this process. Implements `pipeline.segment.Segment`."""

    def __init__(self, study: Study, lineage: Lineage, *, run_id: str, view: StudyView, stop: StopRequest) -> None:
        self.trial = lineage.head.number
        self._id = lineage.head._trial_id
        self._study = study
        self._spec = study.spec
        self._lineage = lineage
        self._run_id = run_id
        self._store = MlflowStore(run_id)
        self._view = view
        self._stop = stop
        self._moved = True  # since the last heartbeat
        self._beat_s = time.monotonic()
        self._logged: set[int] = set()
        self._names: list[str] = []  # the checkpoints that count and are kept
        self._writer = Writer(self._write, replace=_newer, idle=self._beat, idle_s=HEARTBEAT_S)

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
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
        self._names = accepted[: accepted.index(manifest.name) + 1]
        self._label(manifest)
        # What came after the commit of its last epoch may have been cut off: report, metrics, decision.
        reported = self._lineage.head.intermediate_values
        for report in manifest.history:
            if report.epoch not in reported:
                self._study.report(self._id, report.epoch, report.metrics[self._spec.monitor])
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

    def commit(self, snapshot: Snapshot, report: Report | None) -> None:
        """Hands it to the writer; training goes on. Raises what went wrong with an earlier one, Fenced among it."""
        self._writer.submit(_Commit(snapshot=snapshot, reports=(report,) if report is not None else ()))

    def checkpoint(self, name: str) -> Checkpoint:
        self._writer.flush()
        return Checkpoint.of(self._store, name)

    def close(self) -> None:
        """Returns when everything is committed. Raises what went wrong, Fenced among it."""
        self._writer.close()

    def _write(self, commit: "_Commit") -> None:
        """Raises: Fenced, if another process has ended this trial; Unsaved, for what stores and servers do."""
        try:
            self._save(commit)
        except (Fenced, EncodeError):
            raise
        except Exception as error:
            name = commit.snapshot.manifest.name
            raise Unsaved(f"checkpoint {name} cannot be saved: {type(error).__name__}: {error}") from error

    def _save(self, commit: "_Commit") -> None:
        """Checkpoint first, then the study, then metrics: what the study says is there, is there."""
        manifest = commit.snapshot.manifest
        name = manifest.name
        with tempfile.TemporaryDirectory() as scratch:
            save(Path(scratch), commit.snapshot.state, manifest)
            self._store.put(name, Path(scratch))
        best = manifest.best
        progress = {
            "checkpoint": name,
            "epochs": manifest.history[-1].epoch if manifest.history else 0,
            "best": best and {"epoch": best.epoch, "value": best.value, "checkpoint": best.checkpoint},
        }
        self._study.set(self._id, "progress", progress)
        for report in commit.reports:
            self._study.report(self._id, report.epoch, report.metrics[self._spec.monitor])
        self._log(commit.reports)
        self._retain(manifest)

    def _retain(self, manifest: Manifest) -> None:
        self._names.append(manifest.name)
        best = manifest.best.checkpoint if manifest.best is not None else None
        keep = kept(self._names, best=best, pinned=self._pinned())
        try:
            self._store.keep_only(keep, self.trial)
        except Exception as error:  # noqa: BLE001  stores raise what they like; what is to be kept is safe
            log.warning("#%02d: old checkpoints cannot be deleted: %s", self._lineage.number, error)
            return
        self._names = [name for name in self._names if name in keep]

    def _pinned(self) -> set[str]:
        """Where the configuration paused, and what its stages ended with."""
        segments = self._lineage.segments
        rungs = {
            after.user_attrs["start"]
            for before, after in pairwise(segments)
            if before.user_attrs.get("ended") == PAUSED and after.user_attrs["start"] is not None
        }
        return rungs | {name for name in self._names if _position(name).is_stage_start}

    def _beat(self) -> None:
        """A heartbeat, if training has moved since the last one: a thread that beats on its own says nothing."""
        if self._moved and time.monotonic() - self._beat_s >= HEARTBEAT_S:
            self._moved = False
            self._study.beat(self._id)
            self._beat_s = time.monotonic()

    def asked_to_stop(self) -> str | None:
        self._moved = True
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
        self._writer.flush()  # the pruner looks at what the study says
        trial = self._study.storage.get_trial(self._id)
        return PRUNED if self._view.pruner.prune(self._view, trial) else None

    def _log(self, reports: Iterable[Report]) -> None:
        """Logs what MLflow has not; an epoch that had to be trained again stands there already."""
        new = [r for r in reports if r.epoch not in self._logged]
        runs.log_history(self._run_id, [(r.epoch, r.time_ms, r.metrics) for r in new])


@dataclass(frozen=True, kw_only=True)
class _Commit:
    """A snapshot to be committed, and the reports to be logged with it."""

    snapshot: Snapshot
    reports: tuple[Report, ...]


def _newer(waiting: _Commit, commit: _Commit) -> _Commit | None:
    """The newer commit with the reports of both; None if the waiting one is going to be asked for.

    It is if it has the best weights so far, or is what a stage ended with.
    """
    name, best = waiting.snapshot.manifest.name, commit.snapshot.manifest.best
    if (best is not None and best.checkpoint == name) or commit.snapshot.state["loop"]["previous"] == name:
        return None
    return replace(commit, reports=waiting.reports + commit.reports)


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
