"""How much is left of a study, and how long that takes; nothing is said before there is evidence."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep import halving
from pipeline.sweep.budget import granted, spent
from pipeline.sweep.lineage import COMPLETE, PRUNED, Lineage, progress_of
from pipeline.sweep.pruners import PAUSING
from pipeline.sweep.schedule import first_goal
from pipeline.sweep.spec import StudySpec

EVIDENCE = 3  # epochs, or configurations, that are known before something is said of those to come
BETWEEN_S = 30.0  # a worker that has no segment for so long has left


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is still to be expected.

    Attributes:
        epochs: about how many are still to be trained.
        seconds: about how long that takes those who work now; None where it cannot be said.
    """

    epochs: float
    seconds: float | None


def forecast(
    spec: StudySpec,
    lineages: Mapping[int, Lineage],
    now: datetime,
    *,
    only: Collection[int] | None = None,
    max_total_epochs: int | None = None,
) -> Forecast | None:
    """None where nothing can be said. `only` and `max_total_epochs` are what a command restricts itself to."""
    epochs = _begun(lineages, only) if only is not None else epochs_left(spec, lineages)
    if max_total_epochs is not None:
        budget = float(max(0, max_total_epochs - spent(lineages)))
        epochs = budget if epochs is None else min(epochs, budget)
    if epochs is None:
        return None
    epoch_s, workers = seconds_per_epoch(lineages.values()), _workers(lineages.values(), now)
    if epoch_s is None or not workers:
        return Forecast(epochs=epochs, seconds=None)
    # However many work: one configuration after another is no quicker than it is.
    longest = min(epochs, _longest(spec, lineages, only))
    return Forecast(epochs=epochs, seconds=epoch_s * max(epochs / workers, longest))


def epochs_left(spec: StudySpec, lineages: Mapping[int, Lineage]) -> float | None:
    """About how many epochs are still to be trained; None where that cannot be said.

    Of halving it is known what share of a rung goes on. Of other rules it is not, nor of an experiment's patience: what
    is to come is taken for like what has ended, once enough has.
    """
    undrawn = max(0, spec.configurations - len(lineages))
    if spec.pruner in PAUSING:
        return _begun(lineages, None) + _to_be_begun(spec, lineages)
    early = any(lineage.stopped_early is not None for lineage in lineages.values())
    if spec.pruner == "none" and not early:
        return _begun(lineages, None) + undrawn * spec.max_epochs
    going_on = _going_on(lineages, None)
    ended = [lineage.epochs for lineage in lineages.values() if lineage.ended in (COMPLETE, PRUNED)]
    if len(ended) < EVIDENCE:
        return None if going_on or undrawn else 0.0
    mean = fmean(ended)
    return sum(max(0.0, mean - lineage.epochs) for lineage in going_on) + undrawn * mean


def seconds_per_epoch(lineages: Iterable[Lineage]) -> float | None:
    """What an epoch takes a worker, by all that was trained; None before there is evidence."""
    total, total_s = 0, 0.0
    for lineage in lineages:
        for before, segment in pairwise([None, *lineage.segments]):
            assert segment is not None
            epochs, seconds = gained(before, segment), _seconds(segment)
            if epochs > 0 and seconds is not None:
                total, total_s = total + epochs, total_s + seconds
    return total_s / total if total >= EVIDENCE else None


def gained(before: FrozenTrial | None, segment: FrozenTrial) -> int:
    """Epochs that a segment has added to what was there before it."""
    return int(progress_of(segment)["epochs"]) - (0 if before is None else int(progress_of(before)["epochs"]))


def goal(lineage: Lineage) -> int:
    """The epoch at which its newest segment ends."""
    return granted(lineage.head) or lineage.until


def _seconds(segment: FrozenTrial) -> float | None:
    """What its epochs took: with all that goes on between, if it came to its end; else up to its last report.

    When one that was killed has ended, nobody knows: it is said when it is noticed.
    """
    if segment.state in (TrialState.COMPLETE, TrialState.PRUNED):
        assert segment.datetime_start is not None and segment.datetime_complete is not None
        return (segment.datetime_complete - segment.datetime_start).total_seconds()
    return progress_of(segment).get("seconds")


def _workers(lineages: Iterable[Lineage], now: datetime) -> int:
    """How many work: those who train, and those who did a moment ago, if anybody trains."""
    segments = [lineage.head for lineage in lineages]
    training = {_worker(one) for one in segments if one.state is TrialState.RUNNING}
    recent = {
        _worker(one)
        for one in segments
        if one.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and one.datetime_complete is not None
        and timedelta(0) <= now - one.datetime_complete < timedelta(seconds=BETWEEN_S)
    }
    return len(training | recent) if training else 0


def _worker(segment: FrozenTrial) -> tuple[str, int]:
    owner = segment.user_attrs.get("worker", {})
    return owner.get("host", ""), owner.get("pid", -segment.number - 1)


def _going_on(lineages: Mapping[int, Lineage], only: Collection[int] | None) -> list[Lineage]:
    """The configurations whose newest segment waits, runs or was broken off."""
    mine = [lineage for number, lineage in lineages.items() if only is None or number in only]
    return [lineage for lineage in mine if lineage.ended is None or lineage.may_continue()]


def _begun(lineages: Mapping[int, Lineage], only: Collection[int] | None) -> float:
    """Epochs that are left of segments that are there already."""
    return float(sum(max(0, lineage.until - lineage.epochs) for lineage in _going_on(lineages, only)))


def _to_be_begun(spec: StudySpec, lineages: Mapping[int, Lineage]) -> float:
    """Epochs of the segments that halving has yet to create: bracket by bracket, the share that goes on."""
    rungs = _rungs(spec)
    searched = {number: lineage for number, lineage in lineages.items() if not lineage.reopened}
    total, furthest = 0.0, 0
    for first in sorted({first_goal(spec, number) for number in range(spec.configurations)}):
        numbers = [number for number in range(spec.configurations) if first_goal(spec, number) == first]
        members = [searched[number] for number in numbers if number in searched]
        expected, before = len(numbers) - sum(number in lineages and number not in searched for number in numbers), 0
        for rung in rungs[rungs.index(first) :]:
            sent = sum(lineage.until >= rung for lineage in members)
            reach = max(sent, expected)
            total += (rung - before) * (reach - sent)
            failed = sum(lineage.failed() and lineage.epochs < rung for lineage in members)
            expected, before = max(0, reach - failed) // spec.eta, rung
            furthest = max(furthest, rung if reach else 0)
    # If the shares are too small for a whole configuration, the best of the highest rung goes on all the same.
    return total + spec.max_epochs - furthest


def _longest(spec: StudySpec, lineages: Mapping[int, Lineage], only: Collection[int] | None) -> int:
    """Epochs that one configuration has before it, and the others cannot help with."""
    longest = max((lineage.until - lineage.epochs for lineage in _going_on(lineages, only)), default=0)
    if only is not None or spec.pruner not in PAUSING:
        return longest
    if any(lineage.ended == COMPLETE for lineage in lineages.values()):
        return longest
    return max(longest, spec.max_epochs - max((lineage.epochs for lineage in lineages.values()), default=0))


def _rungs(spec: StudySpec) -> list[int]:
    return halving.rungs(min_epochs=spec.min_epochs, max_epochs=spec.max_epochs, eta=spec.eta)
