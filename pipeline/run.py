"""`Run`: what a training loop talks to. It knows where training stands and makes every part of it resumable.

A run is restored in three steps, because a loop constructs things before it trains: `track` loads the tracked
objects, `epochs` loads the random state of the epoch, and inside an epoch the first batch of `batches` loads
objects and random state once more, as they were between the two batches where training stopped.

Of several processes in one trial each has a run, and all of them do the same. Rank 0's writes the checkpoints and
decides; where a decision depends on what one of them alone knows, they agree on it (see `pipeline.ranks`).
"""

import inspect
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch

from pipeline.batches import Feed, Feeds
from pipeline.checkpoint import (
    RESERVED,
    Best,
    Checkpoint,
    HeldBack,
    Manifest,
    Position,
    Report,
    Schedule,
    Schedules,
    SnapshotParts,
    Snapshots,
    as_seen_by,
    capture_generators,
    capture_random,
    check_encodable,
    check_names,
    check_schedule,
    checkpoint_name,
    fingerprint,
    generators,
    merged,
    own_part,
    pending_gradients,
    plain,
    restore,
    restore_generators,
    restore_random,
    seed_all,
)
from pipeline.checkpoint.environment import default_device, environment
from pipeline.checkpoint.pace import Every, Pace
from pipeline.course import Course
from pipeline.errors import MismatchError, UsageError
from pipeline.experiment import Experiment, seed_for
from pipeline.local import LocalSegment
from pipeline.ranks import Ranks, settle_buckets
from pipeline.segment import Segment, Snapshot, Stopped

log = logging.getLogger("pipeline")


class Run:
    """One stretch of training, from where the configuration stands to where it is stopped.

    Attributes:
        max_epochs: epochs this stage is planned for; what a schedule should span.
        seed: seed of this configuration; python, numpy and torch were seeded by it before `train`.
        device: where to put the model.
        rank, world_size, is_main: of several processes in this trial the number of this one, how many there are, and
            whether it is the first; 0, 1 and True where it is alone.
        data: the tables that `prepare` returned, by name.
        epoch: finished epochs of the stage; within the loop's body, the number of the current one, from 0.
        batch: finished batches of the current epoch.
        step: batches since the start of training.
        stage: finished stages; the number of the current one, from 0.
        done: whether `train` has returned before its epochs were over.
        stopped: what has left `train`, and must not be mistaken for its end when the user's code has caught it.
    """

    def __init__(
        self,
        *,
        segment: Segment,
        experiment: Experiment,
        seed: int,
        stage: int,
        max_epochs: int,
        data: Mapping[str, Any],
        origin: Mapping[str, Any],
        resumed: tuple[Manifest, dict[str, Any]] | None,
        checkpoint_every_s: Every = 60.0,
        schedule: Schedule | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self.rank, self.world_size, self.is_main = self._ranks.rank, self._ranks.world_size, self._ranks.is_main
        self.seed = seed
        self.stage = stage
        self.max_epochs = max_epochs
        self.data = data
        self.device = default_device()
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self._segment = segment
        self._experiment = experiment
        self._origin = origin
        self._pace = Pace(checkpoint_every_s)
        self._objects: dict[str, Any] = {}
        self._snapshots: Snapshots | SnapshotParts | None = None
        self._last: Snapshot | None = None
        self._feeds: Feeds | None = None
        self._feed: Feed | None = None
        self._means: dict[str, list[float]] = {}
        self._given: dict[str, float] = {}  # to `report`, which adds the averages
        self._report: Report | None = None
        self._held_back = HeldBack(())  # the same on all ranks
        self._has_warned = False
        self._course = Course(experiment)
        self._epoch_start: dict[str, Any] = {}
        self._entered_s = time.monotonic()  # when the current epoch was begun, or entered in its middle
        self._seconds_before = 0.0  # that the current epoch was trained before it was entered
        self._loader_state: dict[str, Any] | None = None  # as the last epoch that asked for batches left it
        self._loader_saved: dict[str, Any] | None = None  # the same of a checkpoint, until it is asked for
        self._parent: int | None = None
        self._resumed: dict[str, Any] | None = None
        self._inside = False  # resumed in the middle of an epoch whose batches were not yet asked for
        self._previous: str | None = None
        self._schedules: Schedules | None = None
        self.done = False
        self.stopped: Stopped | None = None
        # Each stage from a state of its own, so that what is constructed before `track` is the same when resumed.
        seed_all(seed_for(seed, stage) if stage else seed)
        if resumed is not None:
            self._resume(*resumed, schedule)

    @classmethod
    def local(
        cls,
        folder: str | Path,
        experiment: Experiment,
        *,
        seed: int = 0,
        max_epochs: int | None = None,
        data: Mapping[str, Any] | None = None,
        schedule: Schedule | None = None,
    ) -> "Run":
        """A run for a notebook or a debugger: no MLflow, no Optuna; its checkpoints lie in `folder`.

        The same folder again continues; every checkpoint is kept. Without `data`, the experiment's `prepare` is
        called with its defaults. With more `max_epochs` than before, `schedule` says what the learning rate's does
        beyond its planned end (see `pipeline.checkpoint.schedules`). In a notebook and in a terminal, a bar shows
        how far it has come.
        """
        if data is None and experiment.prepare is not None:
            data = experiment.prepare(experiment.data() if experiment.data else None)
        if len(experiment.stages) > 1:
            raise UsageError("Run.local: the experiment has several stages; use `python -m pipeline train`")
        max_epochs = experiment.max_epochs if max_epochs is None else max_epochs
        segment = LocalSegment(Path(folder), max_epochs)
        return cls(
            segment=segment,
            experiment=experiment,
            seed=seed,
            stage=0,
            max_epochs=max_epochs,
            data=data or {},
            origin={},
            resumed=segment.resume(),
            schedule=schedule,
        )

    def track(self, **objects: Any) -> None:
        """Names what training changes; a resumed run loads their state here, in place.

        Takes whatever has `state_dict` and `load_state_dict`, and random generators of torch and NumPy. Call
        it once everything is constructed, before the epochs loop. A model is saved under the same names whether or not
        DistributedDataParallel is around it. Of several processes it is rank 0's objects that are saved, and loaded by
        all: what is to differ between them is random state.

        Raises:
            EncodeError: a state holds something that a checkpoint cannot.
            MismatchError: the checkpoint does not fit the objects; none was changed.
        """
        check_names(objects)
        twice = sorted(set(objects) & set(self._objects))
        if twice:
            raise UsageError(f"run.track({twice[0]}=...): this name is tracked already; give every object its own")
        if self.world_size > 2:
            for value in objects.values():
                settle_buckets(value)
        self._objects |= {name: plain(value) for name, value in objects.items()}
        check_encodable(self._objects)  # now, rather than after the first epoch
        if self._resumed is not None:
            if self._schedules is not None:
                self._schedules.built(objects)
            # All of them again: what was constructed in between may have changed what was loaded before.
            self._restore(self._resumed)

    def epochs(self) -> Iterator[int]:
        """The epochs that remain, by their absolute numbers: 0, 1, 2 ...

        When the loop comes back for the next, the epoch's checkpoint is taken and it is decided whether to go
        on; a stop leaves the loop and `train` from here.

        Raises:
            UsageError: an epoch went by without `run.report`.
        """
        if self._resumed is not None:
            forgotten = sorted(set(self._resumed) - set(self._objects) - RESERVED)
            if forgotten:
                raise MismatchError(
                    f"the checkpoint holds {', '.join(forgotten)}, which run.track was not given; "
                    "track it again, or start a new study"
                )
            restore_random(self._resumed["rng"])
            if self._inside:
                start = self._resumed["loop"]["epoch_start"]
                restore_generators(self._objects, start["generators"])
                restore_random(start["rng"])
            else:
                self._resumed = None
        elif self.rank > 0:
            seed_all(self._own_seed())  # what was constructed before is the same on all
        self._watch()
        self._held_back = HeldBack(self._objects.values())
        rng = capture_random()
        try:
            while not self._is_over():
                self._epoch_start = {"rng": rng, "generators": capture_generators(self._objects)}
                self._entered_s = time.monotonic()
                yield self.epoch
                rng = self._turn(inspect.currentframe())
        finally:
            self._settle()  # what comes after the loop may change weights, and no other snapshot follows

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of this epoch that remain; call it once an epoch.

        Between two of them a checkpoint may be taken, and a stop is obeyed. See `pipeline.batches` for how
        the different loaders are entered in the middle. Several processes each get their part of every batch.

        Raises:
            UsageError: called a second time in an epoch.
        """
        if self._report is not None:
            raise UsageError("run.batches comes before run.report: what is reported is what the batches came to")
        if self._feed is not None:
            raise UsageError(
                "run.batches was called twice in one epoch; iterate over validation data with its loader plainly"
            )
        if self._feeds is None:
            own = generators(self._objects).values()
            tracked = [one for one in own if isinstance(one, torch.Generator)]
            self._feeds = Feeds(tracked, rank=self.rank, world_size=self.world_size)
        saved, self._loader_saved = self._loader_saved, None
        self._feed = self._feeds.open(
            loader, key=f"{self.seed}/{self.stage}/{self.epoch}", skip=self.batch, saved=saved
        )
        if self._inside:
            assert self._resumed is not None
            self._inside = False
            self._means = {name: list(mean) for name, mean in self._resumed["loop"]["means"].items()}
            self._restore(self._resumed)
            restore_random(self._resumed["rng"])
            self._resumed = None
        end = object()
        batch = next(self._feed.iterator, end)
        while batch is not end:
            yield batch
            self.batch += 1
            self.step += 1
            self._segment.moved(self._position(), self._means)
            stop, due = (None, False) if self._held_back else self._agree()
            # Taken before the next batch is loaded, which may draw; kept only if there is one.
            snapshot = self._snapshot() if stop or due else None
            batch = next(self._feed.iterator, end)
            if snapshot is not None and batch is end:
                snapshot.taken.settle()
                snapshot.taken.release()
            elif snapshot is not None:
                self._commit(snapshot)
                if stop:
                    self._leave(stop)

    def mean(self, **values: Any) -> None:
        """Adds to averages over the epoch, which `report` reports and a kill does not lose.

        Of several processes each adds its own values, and what is reported is the average over all.

        Raises:
            UsageError: no number.
        """
        for name, value in values.items():
            number = _number(f"run.mean({name}=...)", value)
            mean = self._means.setdefault(name, [0.0, 0.0])
            mean[0] += number
            mean[1] += 1.0

    def report(self, **metrics: Any) -> None:
        """Gives the epoch's metrics, once an epoch; the averages of `mean` are added by themselves.

        Of several processes it is rank 0's that count; the others may leave it out.

        Raises:
            UsageError: a second report in one epoch, no number, or the monitored metric is missing.
        """
        if self._report is not None:
            raise UsageError(f"run.report was called twice in epoch {self.epoch}; give all metrics in one call")
        self._given = {name: _number(f"run.report({name}=...)", value) for name, value in metrics.items()}
        values = _averages(self._means) | self._given
        for name in (*self._experiment.objectives, *self._experiment.constraints):
            if name not in values:
                what = "constraint" if name in self._experiment.constraints else "monitored metric"
                given = ", ".join(f"{n}=..." for n in values)
                raise UsageError(f"run.report({given}) lacks the {what}; add {name}=...")
        self._report = Report(
            epoch=len(self.history) + 1,
            time_ms=time.time_ns() // 1_000_000,
            seconds=self._epoch_seconds(),
            metrics=values,
        )

    def finish(self) -> Best:
        """Called when `train` has returned. A reported epoch that the loop left early is still committed.

        Raises:
            UsageError: no epoch was ever reported.
        """
        if self._ranks.share(self._report is not None):
            self.done = True  # else a kill before the study knows it would train the epochs that were left out
            self._complete_epoch(self._agreed_report())
        if self._course.best is None:
            raise UsageError("train returned without one run.report(...); report every epoch in the epochs loop")
        return self._course.best

    def hand_over(self) -> tuple[Manifest, dict[str, Any]]:
        """Ends a stage that another one follows; returns the checkpoint that the next one starts from.

        It stands at the next stage's start and holds what this one ended with, so that a resumed configuration
        never enters a finished stage again.
        """
        self.finish()
        self.stage, self.epoch, self.batch = self.stage + 1, 0, 0
        self._course.start_stage()
        self._means, self._feed, self._loader_state, self.done = {}, None, None, False
        self._previous = self._name()
        snapshot = self._snapshot()
        if self._resumed is not None:  # the stage had returned before a kill, and has nothing tracked here
            snapshot = replace(snapshot, state={**self._resumed, "loop": snapshot.state["loop"]})
        self._commit(snapshot)
        if self.world_size > 1:  # the other processes read it from where it is stored
            if self.is_main:
                self._segment.checkpoint(self._previous)
            self._ranks.share(None)
        return snapshot.manifest, {"loop": snapshot.state["loop"]}

    def close(self) -> None:
        """Called when `train` was left in whatever way: nothing of the run goes on beside it any more."""
        if self._snapshots is not None:
            self._snapshots.close()
            self._snapshots = None

    @property
    def tracked(self) -> Mapping[str, Any]:
        """What `track` was given, by name."""
        return dict(self._objects)

    @property
    def previous(self) -> Checkpoint:
        """The checkpoint that the stage before this one ended with. Raises UsageError in the first stage."""
        if self._previous is None:
            raise UsageError("run.previous: this is the first stage, there is none before it")
        return self._segment.checkpoint(self._previous)

    @property
    def history(self) -> tuple[Report, ...]:
        """The reports of all finished epochs of this configuration."""
        return self._course.history

    def _restore(self, state: dict[str, Any]) -> None:
        restore(self._objects, state)
        if self._schedules is not None:
            self._schedules.loaded(self._objects)

    def _resume(self, manifest: Manifest, state: dict[str, Any], schedule: Schedule | None) -> None:
        self.epoch, self.batch = manifest.position.epoch, manifest.position.batch
        self.step = manifest.step
        self._seconds_before = manifest.seconds
        self._course.resume(manifest)
        self._parent = manifest.trial
        self._previous = state["loop"]["previous"]
        if not manifest.position.is_stage_start:
            state = as_seen_by(self.rank, self.world_size, state, self._own_seed())
            self._resumed = state
            self._loader_state = self._loader_saved = state["loop"]["loader"]
            self._inside = self.batch > 0
            loop = state["loop"]
            self._course.patience_from = loop["patience_from"]
            is_longer = len(self._experiment.stages) == 1 and loop["max_epochs"] != self.max_epochs
            if is_longer:
                check_schedule(state, epochs=self.epoch, max_epochs=self.max_epochs, schedule=schedule)
                if self._has_lost_patience():
                    self._course.renew_patience()
            stretch = is_longer and schedule == "stretch"
            held = (is_longer and schedule == "constant") or (loop["held"] and not stretch)
            self._schedules = Schedules(state, stretch=stretch, held=held)
            self.done = loop["done"] and not is_longer

    def _turn(self, frame: FrameType | None) -> dict[str, Any]:
        """Ends the epoch; returns the random state that the next one starts with."""
        if self._report is None and self.is_main:
            caller = frame.f_back if frame is not None else None
            place = f" ({caller.f_code.co_filename}, line {caller.f_lineno})" if caller is not None else ""
            raise UsageError(
                f"epoch {self.epoch} ended without a report; add `run.report({self._experiment.leading}=...)` "
                f"to the epochs loop{place}"
            )
        if self._inside:
            raise UsageError(
                f"the checkpoint lies inside epoch {self.epoch}, which ran without run.batches; the loop was changed"
            )
        report = self._agreed_report()
        if self._held_back and self.is_main and not self._has_warned:
            self._has_warned = True
            log.warning(
                "gradients that FSDP holds back at the end of an epoch are not in its checkpoint: call "
                "set_requires_gradient_sync(True) before its last batch"
            )
        snapshot = self._complete_epoch(report)
        stop = None if self._is_over() else self._agree(now=True)[0]
        if not self._has_lost_patience():
            stop = self._ranks.share(self._segment.after_epoch(report)) or stop
        if stop:
            self._leave(stop)
        rng: dict[str, Any] = snapshot.state["rng"]
        return rng

    def _is_over(self) -> bool:
        return self.epoch >= self.max_epochs or self._has_lost_patience()

    def _has_lost_patience(self) -> bool:
        return self._course.has_lost_patience(self.epoch)

    def _agree(self, *, now: bool = False) -> tuple[str | None, bool]:
        """Why to stop here, if at all, and whether a checkpoint is due."""
        stop = self._segment.asked_to_stop()
        stops, due = self._ranks.agree(stop is not None, self.is_main and self._pace.due(), now=now)
        return (stop or self._segment.asked_to_stop()) if stops else None, due

    def _epoch_seconds(self) -> float:
        """How long the current epoch was trained so far, before a stop as well."""
        return self._seconds_before + time.monotonic() - self._entered_s

    def _own_seed(self) -> int:
        """Of what this process draws from here on, if no checkpoint says."""
        return seed_for(seed_for(seed_for(self.seed, self.stage), self.rank), self.step)

    def _agreed_report(self) -> Report:
        """The epoch's report, with averages over all processes."""
        if self.world_size == 1:
            assert self._report is not None
            return self._report
        means = self._ranks.collect(self._means)
        report = self._report
        if report is not None:
            report = replace(report, metrics=_averages(merged(means)) | self._given)
        plain_report = self._ranks.share(None if report is None else asdict(report))
        assert plain_report is not None
        return Report(**plain_report)

    def _leave(self, why: str) -> NoReturn:
        self._settle()  # the user's `finally` may change weights
        self.stopped = Stopped(why)
        raise self.stopped

    def _complete_epoch(self, report: Report) -> Snapshot:
        self.epoch, self.batch = self.epoch + 1, 0
        self._segment.moved(self._position(), self._means)
        self._report, self._means, self._seconds_before = None, {}, 0.0
        self._course.add(report)
        self._settle()
        self._course.judge(report, self._name())
        snapshot = self._snapshot()
        self._feed = None
        self._commit(snapshot)
        return snapshot

    def _name(self) -> str:
        return checkpoint_name(self._position(), self._segment.trial)

    def _position(self) -> Position:
        return Position(self.stage, self.epoch, self.batch)

    def _snapshot(self) -> Snapshot:
        self._settle()
        inside = self.batch > 0
        manifest = Manifest(
            position=self._position(),
            step=self.step,
            seconds=self._epoch_seconds() if inside else 0.0,
            trial=self._segment.trial,
            parent=self._parent,
            history=self._course.history,
            best=self._course.best,
            environment={**environment(), **self._origin},
            files={},
            tensors={},
        )
        must_stand = self._segment.make_room(manifest)
        if self._feed is not None:
            self._loader_state = self._feed.inside() if inside else self._feed.after()
        loop = {
            "means": {name: list(mean) for name, mean in self._means.items()},
            "epoch_start": self._epoch_start if inside else None,
            "loader": self._loader_state,
            "previous": self._previous,
            "done": self.done,
            "max_epochs": self.max_epochs,
            "patience_from": self._course.patience_from,
            "stops_early": self._has_lost_patience(),
            "held": self._schedules is not None and self._schedules.held,
        }
        taken = self._watch().take(inside=inside, at_once=must_stand)
        state = {**taken.state, "rng": capture_random(), "loop": loop}
        if self.world_size > 1:
            state["ranks"] = self._parts(loop)
        self._pace.taken(taken)
        return Snapshot(manifest=manifest, state=state, taken=taken)

    def _parts(self, loop: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What each of the other processes has of its own, on rank 0."""
        gradients = pending_gradients(self._objects)
        marks = self._ranks.collect(fingerprint(gradients))
        differ = self._ranks.share(any(mark != marks[0] for mark in marks))
        part = {} if self.is_main else own_part(self._objects, loop, gradients if differ else None)
        return {str(number): one for number, one in enumerate(self._ranks.collect(part)) if number > 0}

    def _watch(self) -> Snapshots | SnapshotParts:
        """What takes the snapshots; from the first epoch on it sees each step of the optimizers."""
        if self._snapshots is None:
            share, alone = self._ranks.share, self.world_size == 1
            self._snapshots = (
                Snapshots(self._objects, None if alone else share)
                if self.is_main
                else SnapshotParts(self._objects, share)
            )
        return self._snapshots

    def _settle(self) -> None:
        """The last snapshot may turn out to be none; then it is not where the best weights are."""
        if self._last is None:
            return
        self._last.taken.settle()
        if self._last.taken.torn:
            self._course.take_back(self._last.manifest.name)
        self._last = None

    def _commit(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        self._segment.commit(snapshot)


def _averages(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: total / count for name, (total, count) in sums.items()}


def _number(place: str, value: Any) -> float:
    if isinstance(value, (int, float, np.number)):
        return float(value)
    if isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        number = value.item()  # of a tensor that requires a gradient too, where float() warns
        if isinstance(number, (int, float)):
            return float(number)
    raise UsageError(f"{place}: expected a number, found {type(value).__name__}")
