"""A segment of a configuration: an Optuna trial, its MLflow run and its checkpoints, behind one `Segment`."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.checkpoint import (
    Checkpoint,
    Manifest,
    Position,
    Report,
    load_newest,
)
from pipeline.checkpoint.environment import changes, environment
from pipeline.checkpoint.pace import Every
from pipeline.errors import CorruptCheckpoint
from pipeline.segment import Snapshot, Stopped
from pipeline.signals import StopRequest
from pipeline.sweep import budget
from pipeline.sweep.accepted import accepted_checkpoints
from pipeline.sweep.lineage import PAUSED, PREEMPTED, PRUNED, Lineage
from pipeline.sweep.patience import patiently
from pipeline.sweep.pruners import RULES, pruning_view
from pipeline.sweep.pulse import Heartbeats, Pulse
from pipeline.sweep.saving import Saver
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
EPOCHS_KNOWN = 50  # the newest epochs, whose median says what an epoch takes


class TrialSegment:
    """The newest segment of a lineage, claimed by this process. Implements `pipeline.segment.Segment`."""

    def __init__(
        self,
        study: Study,
        lineage: Lineage,
        *,
        run_id: str,
        stop: StopRequest,
        pulse: Pulse,
        saver: Saver,
        beat: Callable[[], None],
        outage_s: float,
        begins: Callable[[Manifest | None], None] = lambda _: None,
    ) -> None:
        """`begins` is called with the checkpoint that it begins with, once that is certain."""
        self.trial = lineage.head.number
        self._id = lineage.head._trial_id
        self._study = study
        self._spec = study.spec
        self._lineage = lineage
        self._run_id = run_id
        self._outage_s = outage_s
        self._begins = begins
        self._view = pruning_view(study, self._spec)
        self._stop = stop
        self.position: list[int] | None = None  # stage, epoch and batch where training stands, once it has moved
        self._pulse = pulse
        self._epochs_s: deque[float] = deque(maxlen=EPOCHS_KNOWN)
        self._epoch_began_s: float | None = None  # None inside an epoch that another segment has begun
        self._saver = saver
        self._heartbeats = Heartbeats(beat, pulse, HEARTBEAT_S, self._name)

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        found = patiently(f"{self._name} cannot be resumed", self._resume, self._outage_s)
        if found is not None:
            times_s = [report.time_ms / 1000 for report in found[0].history]
            # Pauses too: rather too long.
            self._epochs_s.extend(after - before for before, after in pairwise(times_s))
        self._epoch_began_s = time.monotonic() if found is None or found[0].position.batch == 0 else None
        self._pulse.begin()
        self._pulse.place.begin(
            self._lineage.number,
            until=budget.granted(self._lineage.head) or self._lineage.until,
            epochs=0 if found is None else len(found[0].history),
            inside=found is not None and found[0].position.batch > 0,
        )
        self._begins(None if found is None else found[0])
        return found

    def _resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        """Raises:
        CorruptCheckpoint: there should be a checkpoint and none of them verifies.
        Stopped: the checkpoint ends an epoch at which training stops, and that was cut off.
        """
        self._lineage = self._saver.take_from_spool()
        store = self._saver.store
        accepted = accepted_checkpoints(self._lineage.segments, store.names())
        if not accepted and self._lineage.head.user_attrs["start"] is None:
            return None
        found = load_newest(store, accepted)
        if found is None:
            raise CorruptCheckpoint(
                f"configuration {self._name}: none of its {len(accepted)} checkpoints verifies "
                f"(MLflow run {self._run_id}); it cannot be continued, sweep again under another --study"
            )
        manifest = found[0]
        self._label(manifest, extends=found[1]["loop"]["max_epochs"] != self._budget)
        self._saver.resume(manifest, accepted[: accepted.index(manifest.name)])
        loop = found[1]["loop"]
        decide = manifest.position.batch == 0 and not loop["done"] and not loop["stops_early"]
        ended = self.after_epoch(manifest.history[-1]) if decide else None
        if ended is not None:
            raise Stopped(ended)
        return found

    @property
    def _budget(self) -> int:
        return self._lineage.extended or self._spec.max_epochs

    def _label(self, manifest: Manifest, *, extends: bool) -> None:
        """Says whether this resume is exact, on the trial, and on the run whether all of them were.

        `extends`: whether an extension begins here, under which a schedule may become another.
        """
        now = {**environment(), "code": self._spec.code, "data": self._spec.data}
        changed = changes(manifest.environment, now)
        schedule = self._lineage.schedule
        becomes_another = extends and schedule in ("stretch", "constant")
        label = f"best effort ({changed})" if changed else f"schedule {schedule}" if becomes_another else EXACT
        if changed:
            log.warning("%s resumes by best effort, not exactly: %s", self._name, changed)
        self._study.set(self._id, "resumed", label)
        before = [segment.user_attrs.get("resumed", EXACT) for segment in self._lineage.segments]
        inexact = [one for one in (*before, label) if one != EXACT]
        runs.set_tags(self._run_id, {"resumed": inexact[-1] if inexact else EXACT})

    def make_room(self, manifest: Manifest) -> bool:
        with self._pulse.resting():
            return self._saver.make_room(manifest)

    def commit(self, snapshot: Snapshot) -> None:
        """Hands it to the writer; training goes on. Raises what went wrong with an earlier one, Fenced among it."""
        self._saver.commit(snapshot)

    def checkpoint(self, name: str) -> Checkpoint:
        self._flush()
        return Checkpoint.of(self._saver.store, name)

    def close(self) -> None:
        """Returns when everything is committed. Raises what went wrong, Fenced and Unsaved among it."""
        self._pulse.end()
        try:
            self._saver.close()
        finally:
            self._heartbeats.close()
            self._pulse.place.end()

    def _flush(self) -> None:
        with self._pulse.resting():
            self._saver.flush()

    @property
    def _name(self) -> str:
        return f"#{self._lineage.number:02d}"

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        self._pulse.moved()
        self._pulse.place.moved(position.batch, means)
        if position.batch == 0:
            now_s = time.monotonic()
            if self._epoch_began_s is not None:
                self._epochs_s.append(now_s - self._epoch_began_s)
            self._epoch_began_s = now_s
        if self.position is None or position.batch == 0:
            self._pulse.expect(self._epochs_s)
        self.position = [position.stage, position.epoch, position.batch]

    def asked_to_stop(self) -> str | None:
        return PREEMPTED if self._stop.reason is not None or self._saver.unsaved is not None else None

    def after_epoch(self, report: Report) -> str | None:
        if report.epoch >= self._budget:
            return None
        if report.epoch >= self._lineage.until:
            return PAUSED
        if report.epoch >= (budget.granted(self._lineage.head) or self._lineage.until):
            return PREEMPTED
        if self._lineage.head.user_attrs.get("reopened"):
            return None  # its user has given it these epochs; the rule that pruned it would prune it again
        if self._spec.pruner not in RULES:
            return None
        self._flush()  # the pruner looks at what the study says
        if self._saver.unsaved is not None:
            return PREEMPTED
        with self._pulse.resting():  # the database may be away
            trial = self._study.storage.get_trial(self._id)
            return PRUNED if self._view.judges(self._lineage, trial) else None
