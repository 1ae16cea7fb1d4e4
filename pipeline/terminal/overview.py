"""How a study goes on, from what its database says alone: who trains what, what is left, what has happened last.

Every machine that reads the study sees the same, while it is worked on and after it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from optuna.trial import TrialState

from pipeline.report.found import STATES, Found
from pipeline.sweep.lineage import (
    BUG,
    COMPLETE,
    DIVERGED,
    HANG,
    LOST,
    OUT_OF_MEMORY,
    PAUSED,
    PREEMPTED,
    PRUNED,
    Lineage,
    progress_of,
)
from pipeline.sweep.study import Study
from pipeline.terminal.forecast import Forecast, forecast, gained, goal, seconds_per_epoch

HAPPENED = {
    PAUSED: "paused at epoch {epochs}{value}",
    PRUNED: "pruned at epoch {epochs}{value}",
    COMPLETE: "complete at epoch {epochs}{value}",
    PREEMPTED: "stopped at epoch {epochs}",
    LOST: "killed at epoch {epochs}",
    OUT_OF_MEMORY: "out of memory at epoch {epochs}",
    HANG: "hung at epoch {epochs} and was killed",
    DIVERGED: "diverged after epoch {epochs}{error}",
    BUG: "failed at epoch {epochs}{error}",
}


@dataclass(frozen=True, kw_only=True)
class Activity:
    """A configuration that is being trained.

    Attributes:
        worker: host and number of the process.
        epochs: finished and committed.
        until: the epoch at which it pauses, or is complete.
        value: the monitored value at its last epoch.
        epoch_s: seconds that an epoch of this segment takes; None before the first.
        silent_s: seconds since its last heartbeat; None before the first.
    """

    number: int
    worker: str
    epochs: int
    until: int
    value: float | None
    epoch_s: float | None
    silent_s: float | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that has happened to a configuration.

    Attributes:
        kind: promoted, reopened, resumed, or why a segment ended.
    """

    at: datetime
    number: int
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best epoch of all so far."""

    number: int
    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Overview:
    """How a study goes on.

    Attributes:
        names: of the configurations, by number.
        states: how many configurations stand how, in the words of the tag `state`.
        undrawn: configurations that are still to be drawn.
        epochs: trained and committed, by all configurations.
        left: what is still to be expected; None where that cannot be said.
        epoch_s: what an epoch takes a worker; None before there is evidence.
        best: None before there is one, and of a study with several objectives.
        events: the last one last.
    """

    study: str
    monitor: str
    over: bool
    names: Mapping[int, str]
    states: Mapping[str, int]
    undrawn: int
    epochs: int
    left: Forecast | None
    epoch_s: float | None
    best: Best | None
    activities: tuple[Activity, ...]
    events: tuple[Event, ...]

    @property
    def standing(self) -> str:
        """Its configurations, counted."""
        counts = [f"{count} {state}" for state, count in self.states.items()]
        counts += [f"{self.undrawn} to be drawn"] * (self.undrawn > 0)
        return ", ".join(counts) or "no configuration yet"

    @property
    def progress(self) -> str:
        """How far it has come, and how long the rest takes, as far as that can be said."""
        if self.over:
            return f"done, {self.epochs} epochs trained"
        if self.left is None:
            return f"{self.epochs} epochs trained"
        done = f"{self.epochs} of about {self.epochs + self.left.epochs:.0f} epochs"
        return done if self.left.seconds is None else f"{done}, about {duration(self.left.seconds)} left"


def overview(study: Study, *, only: Collection[int] | None = None, max_total_epochs: int | None = None) -> Overview:
    """Reads a study once. Raises ThawError if it was not finished being created."""
    return overview_of(Found.of(study), study.silences(), only=only, max_total_epochs=max_total_epochs)


def reading(
    name: str, url: str, *, only: Collection[int] | None = None, max_total_epochs: int | None = None
) -> Callable[[], Overview]:
    """What reads a study again and again, with a connection of its own, in whatever thread."""

    @cache
    def study() -> Study:
        return Study.load(name, url)

    return lambda: overview(study(), only=only, max_total_epochs=max_total_epochs)


def overview_of(
    found: Found,
    silences: Mapping[int, float],
    *,
    only: Collection[int] | None = None,
    max_total_epochs: int | None = None,
) -> Overview:
    """Of a study that was read; `silences` are seconds since the last heartbeats, by the ids of trials."""
    lineages = found.lineages
    left = forecast(found.spec, lineages, found.at, only=only, max_total_epochs=max_total_epochs)
    running = [one for one in lineages.values() if one.head.state is TrialState.RUNNING]
    return Overview(
        study=found.name,
        monitor=found.spec.monitor,
        over=found.over,
        names={number: found.name_of(one) for number, one in lineages.items()},
        states={state: found.counts[state] for state in STATES if found.counts[state]},
        undrawn=found.left,
        epochs=found.epochs,
        left=Forecast(epochs=0.0, seconds=None) if found.over else left,
        epoch_s=seconds_per_epoch(lineages.values()),
        best=_best(found),
        activities=tuple(_activity(one, silences) for one in running),
        events=tuple(events(lineages.values(), found.spec.monitor)),
    )


def events(lineages: Iterable[Lineage], monitor: str) -> list[Event]:
    """What has happened to configurations, in order: how segments ended, and what continued them."""
    happened = [event for lineage in lineages for event in _events(lineage, monitor)]
    return sorted(happened, key=lambda event: (event.at, event.number))


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 05 min`, `3 days`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"


def _events(lineage: Lineage, monitor: str) -> Iterable[Event]:
    endings = lineage.endings
    for index, segment in enumerate(lineage.segments):
        if index and segment.datetime_start is not None:
            before, until = lineage.segments[index - 1], segment.user_attrs["until"]
            goes_on = endings[index - 1] in (PAUSED, PRUNED, COMPLETE)
            kind = "reopened" if segment.user_attrs.get("fresh") else "promoted" if goes_on else "resumed"
            how = f"from epoch {progress_of(before)['epochs']}" if kind == "resumed" else f"to epoch {until}"
            yield Event(at=segment.datetime_start, number=lineage.number, kind=kind, text=f"{kind} {how}")
        if index < len(endings) and segment.datetime_complete is not None:
            epochs = int(progress_of(segment)["epochs"])
            value, error = segment.intermediate_values.get(epochs), segment.user_attrs.get("error")
            text = HAPPENED[endings[index]].format(
                epochs=epochs,
                value="" if value is None else f", {monitor} {value:.6g}",
                error="" if error is None else f": {' '.join(str(error).split())}",
            )
            yield Event(at=segment.datetime_complete, number=lineage.number, kind=endings[index], text=text)


def _best(found: Found) -> Best | None:
    best: dict[str, Any] | None = found.ranking[0].best if found.ranking and not found.spec.others else None
    return None if best is None else Best(number=found.ranking[0].number, epoch=best["epoch"], value=best["value"])


def _activity(lineage: Lineage, silences: Mapping[int, float]) -> Activity:
    head, owner = lineage.head, lineage.head.user_attrs.get("worker")
    epochs = gained(lineage.segments[-2] if len(lineage.segments) > 1 else None, head)
    seconds = lineage.progress.get("seconds")
    return Activity(
        number=lineage.number,
        worker="" if owner is None else f"{owner['host'].partition(' ')[0]}:{owner['pid']}",
        epochs=lineage.epochs,
        until=goal(lineage),
        value=head.intermediate_values.get(lineage.epochs),
        epoch_s=seconds / epochs if epochs > 0 and seconds is not None else None,
        silent_s=silences.get(head._trial_id),
    )
