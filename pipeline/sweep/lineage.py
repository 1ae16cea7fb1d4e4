"""What the trials of a study say: configurations, each a lineage of segments.

Pure functions over Optuna's trials; every process that reads the same trials comes to the same answer.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline.checkpoint import Schedule
from pipeline.experiment import Direction

PAUSED, PRUNED, COMPLETE, DUPLICATE = "paused", "pruned", "complete", "duplicate"
# What breaks a segment off. PREEMPTED: it was asked to stop. LOST: its process is gone. OUT_OF_MEMORY: torch said so,
# Python or the kernel. HANG: it did not move. DIVERGED: the monitored value is no number. BUG: the user's code raised.
PREEMPTED, LOST, OUT_OF_MEMORY, HANG = "preempted", "lost", "out_of_memory", "hang"
DIVERGED, BUG = "diverged", "bug"

# The reasons that go with a state. Reason and state are two writes, and another process that ends the same trial
# may write its reason in between: then the state is right, and its first reason here is the likeliest.
REASONS = {
    TrialState.COMPLETE: (COMPLETE,),
    TrialState.PRUNED: (PAUSED, PRUNED),
    TrialState.FAIL: (LOST, PREEMPTED, OUT_OF_MEMORY, HANG, DIVERGED, BUG),
}

# How many segments in a row may end so, without a new checkpoint in between, before the configuration is failed. A
# preemption is charged to nobody; of what is not here, a study says how many.
RETRIES = {OUT_OF_MEMORY: 1, HANG: 1, DIVERGED: 0}
MAX_RETRIES = 3
ALIKE = 3  # so many first configurations that fail alike are enough to see that all would


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The accepted segments of one configuration, oldest first; never empty.

    Attributes:
        max_retries: how many in a row may be lost, or raise, without a new checkpoint in between.
    """

    number: int
    segments: tuple[FrozenTrial, ...]
    max_retries: int = MAX_RETRIES

    @property
    def head(self) -> FrozenTrial:
        """The newest segment: it alone says how the configuration stands."""
        return self.segments[-1]

    @cached_property
    def as_one(self) -> FrozenTrial:
        """The configuration as one trial: a copy of its newest segment, numbered as the configuration."""
        trial = copy.copy(self.head)
        trial.number = self.number
        return trial

    @cached_property
    def ended(self) -> str | None:
        """Why the newest segment ended; None while it waits or runs."""
        return why_ended(self.head)

    @property
    def endings(self) -> list[str]:
        """Why each of its segments ended that has."""
        return [why for segment in self.segments if (why := why_ended(segment)) is not None]

    @property
    def progress(self) -> dict[str, Any]:
        """What the newest segment has committed, or has been given by its parent."""
        return progress_of(self.head)

    @property
    def epochs(self) -> int:
        """Epochs trained and committed."""
        return int(self.progress["epochs"])

    @property
    def until(self) -> int:
        """The epoch up to which the newest segment was to train."""
        return int(self.head.user_attrs["until"])

    @property
    def extended(self) -> int | None:
        """The epochs that its user has given it beyond what the study's spec gives; None for none."""
        return self.head.user_attrs.get("max_epochs")

    @property
    def stopped_early(self) -> int | None:
        """The epoch with which it was complete, if that came before its budget's last."""
        return self.head.user_attrs.get("stopped_early")

    @property
    def schedule(self) -> Schedule | None:
        """What its user has said that the learning rate's schedule does beyond its planned end."""
        return self.head.user_attrs.get("schedule")

    @property
    def best(self) -> dict[str, Any] | None:
        """Best epoch so far: `epoch`, `value`, `checkpoint`."""
        best = self.progress["best"]
        return dict(best) if best is not None else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration's parameters; None before they are drawn."""
        return self.head.user_attrs.get("config")

    @property
    def run_id(self) -> str | None:
        """The configuration's MLflow run; None before it is created."""
        return self.head.user_attrs.get("run_id")

    @property
    def reopened(self) -> bool:
        """Whether its user has given it the whole budget, past what the search decided."""
        return bool(self.head.user_attrs.get("reopened"))

    @property
    def is_feasible(self) -> bool:
        """Whether its best epoch breaks none of the experiment's constraints."""
        return all(value <= 0 for value in self.head.constraints.values())

    @property
    def tags(self) -> dict[str, str]:
        """What its MLflow run says of it, beside its state."""
        tags = {"trials": ",".join(str(segment.number) for segment in self.segments)}
        if self.ended is not None:
            tags["ended"] = self.ended
        if any("stopped_early" in segment.user_attrs for segment in self.segments):
            tags["stopped_early"] = "no" if self.stopped_early is None else f"after epoch {self.stopped_early}"
        return tags

    def rung_value(self, epoch: int) -> float | None:
        """The monitored value at a rung, if the search brought the configuration there.

        What a reopened configuration reaches by hand takes no part in the promotion of others.
        """
        for segment in self.segments:
            if not segment.user_attrs.get("reopened") and epoch in segment.intermediate_values:
                return float(segment.intermediate_values[epoch])
        return None

    def may_continue(self) -> bool:
        """Whether the newest segment broke off and the configuration is worth another attempt."""
        if self.head.state is not TrialState.FAIL:
            return False
        ended = str(self.ended)
        if ended == PREEMPTED:
            return True
        if ended == BUG and self._has_raised_alike():
            return False
        return self._in_a_row(ended) <= RETRIES.get(ended, self.max_retries)

    def failed(self) -> bool:
        return self.head.state is TrialState.FAIL and not self.may_continue()

    @property
    def bug(self) -> dict[str, Any] | None:
        """What the user's code raised last, and where: `type`, `place`, `position`, `code`."""
        return self.head.user_attrs.get("bug") if self.ended == BUG else None

    def _has_raised_alike(self) -> bool:
        """Whether the same exception at the same position ended a segment before, since it was last reopened."""
        for segment in reversed(self.segments):
            if segment is not self.head and segment.user_attrs.get("bug") == self.bug:
                return self.bug is not None
            if segment.user_attrs.get("fresh"):
                break
        return False

    def _in_a_row(self, reason: str) -> int:
        """How often it broke off for this reason since its last new checkpoint, or since it was reopened."""
        count = 0
        for segment in reversed(self.segments):
            if segment.state is not TrialState.FAIL:
                break
            count += why_ended(segment) == reason
            progressed = progress_of(segment)["checkpoint"] != segment.user_attrs["start"]
            if progressed or segment.user_attrs.get("fresh"):
                break
        return count


def ranked(lineages: Mapping[int, Lineage], direction: Direction) -> list[Lineage]:
    """Configurations with a result, best monitored value first."""
    sign = 1.0 if direction == "minimize" else -1.0
    judged = [lineage for lineage in lineages.values() if lineage.best is not None and not lineage.failed()]
    return sorted(judged, key=lambda one: (not one.is_feasible, sign * (one.best or {})["value"], one.number))


def why_ended(segment: FrozenTrial) -> str | None:
    """Why a segment ended; None while it waits or runs."""
    if not segment.state.is_finished():
        return None
    reasons = REASONS[segment.state]
    found = segment.user_attrs.get("ended")
    return str(found) if found in reasons else reasons[0]


def progress_of(segment: FrozenTrial) -> dict[str, Any]:
    """`checkpoint` (name of the newest that counts, or None), `epochs` (finished) and `best` of a segment."""
    return dict(segment.user_attrs.get("progress", {"checkpoint": None, "epochs": 0, "best": None}))


def failing_alike(lineages: Mapping[int, Lineage], code: str) -> bool:
    """Whether the first configurations all failed by the same bug of this code, and none has come to anything."""
    first = [lineages[number] for number in range(ALIKE) if number in lineages]
    bugs = [lineage.bug for lineage in first if lineage.failed() and lineage.bug is not None]
    return (
        len(bugs) == ALIKE
        and all(
            bug["code"] == code and (bug["type"], bug["place"]) == (bugs[0]["type"], bugs[0]["place"]) for bug in bugs
        )
        and all(lineage.best is None for lineage in lineages.values())
    )


def lineages(trials: Iterable[FrozenTrial], max_retries: int = MAX_RETRIES) -> dict[int, Lineage]:
    """The configurations of a study, by number.

    When two workers continued the same segment, or created the same configuration, the lowest trial number
    wins; the other is not part of any lineage (see `duplicates`).
    """
    return Lineages(max_retries).of(sorted(trials, key=lambda t: t.number))


class Lineages:
    """The lineages of a study that grows: what has ended never changes, and is looked at once."""

    def __init__(self, max_retries: int) -> None:
        self._max_retries = max_retries
        self._settled: dict[int, Lineage] = {}  # what the first trials say, as far as all of them have ended
        self._count = 0  # of those trials

    def of(self, trials: Sequence[FrozenTrial]) -> dict[int, Lineage]:
        """Of all trials of the study, in order; see `lineages`."""
        for trial in trials[self._count :]:
            if not trial.state.is_finished() or trial.number != self._count:
                break
            self._add(self._settled, trial)
            self._count += 1
        found = dict(self._settled)
        for trial in trials[self._count :]:
            self._add(found, trial)
        return dict(sorted(found.items()))

    def _add(self, found: dict[int, Lineage], trial: FrozenTrial) -> None:
        number = trial.user_attrs.get("configuration")
        if number is None:
            return
        segments = found[number].segments if number in found else ()
        if trial.user_attrs["parent"] == (segments[-1].number if segments else None):
            found[number] = Lineage(number=number, segments=(*segments, trial), max_retries=self._max_retries)


def duplicates(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Open trials that lost against a lower number."""
    still_open = [t for t in trials if not t.state.is_finished()]
    theirs = {t.user_attrs.get("configuration") for t in still_open}  # of thousands that are done nothing is asked
    concerned = lineages(t for t in trials if t.user_attrs.get("configuration") in theirs)
    kept = {segment.number for lineage in concerned.values() for segment in lineage.segments}
    return [t for t in still_open if t.number not in kept]
