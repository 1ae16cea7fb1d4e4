"""What the trials of a study say: configurations, each a lineage of segments.

Pure functions over Optuna's trials; every process that reads the same trials comes to the same answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

PREEMPTED, LOST, ERROR, DIVERGED = "preempted", "lost", "error", "diverged"
PAUSED, PRUNED, COMPLETE, DUPLICATE = "paused", "pruned", "complete", "duplicate"

# The reasons that go with a state. Reason and state are two writes, and another process that ends the same trial
# may write its reason in between: then the state is right, and its first reason here is the likeliest.
REASONS = {
    TrialState.COMPLETE: (COMPLETE,),
    TrialState.PRUNED: (PAUSED, PRUNED),
    TrialState.FAIL: (LOST, PREEMPTED, ERROR, DIVERGED),
}

# How many segments in a row may end so, without a new checkpoint in between, before the configuration is failed.
RETRIES = {PREEMPTED: None, LOST: 3, ERROR: 1, DIVERGED: 0}


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The accepted segments of one configuration, oldest first; never empty."""

    number: int
    segments: tuple[FrozenTrial, ...]

    @property
    def head(self) -> FrozenTrial:
        """The newest segment: it alone says how the configuration stands."""
        return self.segments[-1]

    @property
    def ended(self) -> str | None:
        """Why the newest segment ended; None while it waits or runs."""
        if not self.head.state.is_finished():
            return None
        return _ended(self.head)

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
        allowed = RETRIES[str(self.ended)]
        return allowed is None or self._in_a_row(str(self.ended)) <= allowed

    def failed(self) -> bool:
        return self.head.state is TrialState.FAIL and not self.may_continue()

    def _in_a_row(self, reason: str) -> int:
        """How often it broke off for this reason since its last new checkpoint, or since it was reopened."""
        count = 0
        for segment in reversed(self.segments):
            if segment.state is not TrialState.FAIL:
                break
            count += _ended(segment) == reason
            progressed = progress_of(segment)["checkpoint"] != segment.user_attrs["start"]
            if progressed or segment.user_attrs.get("fresh"):
                break
        return count


def ranked(lineages: Mapping[int, Lineage], direction: Literal["minimize", "maximize"]) -> list[Lineage]:
    """Configurations with a result, best monitored value first."""
    sign = 1.0 if direction == "minimize" else -1.0
    judged = [lineage for lineage in lineages.values() if lineage.best is not None and not lineage.failed()]
    return sorted(judged, key=lambda one: (sign * (one.best or {})["value"], one.number))


def _ended(segment: FrozenTrial) -> str:
    reasons = REASONS[segment.state]
    found = segment.user_attrs.get("ended")
    return str(found) if found in reasons else reasons[0]


def progress_of(segment: FrozenTrial) -> dict[str, Any]:
    """`checkpoint` (name of the newest that counts, or None), `epochs` (finished) and `best` of a segment."""
    return dict(segment.user_attrs.get("progress", {"checkpoint": None, "epochs": 0, "best": None}))


def lineages(trials: Iterable[FrozenTrial]) -> dict[int, Lineage]:
    """The configurations of a study, by number.

    When two workers continued the same segment, or created the same configuration, the lowest trial number
    wins; the other is not part of any lineage (see `duplicates`).
    """
    accepted: dict[int, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        number = trial.user_attrs.get("configuration")
        if number is None:
            continue
        segments = accepted.setdefault(number, [])
        if trial.user_attrs["parent"] == (segments[-1].number if segments else None):
            segments.append(trial)
    return {n: Lineage(number=n, segments=tuple(s)) for n, s in sorted(accepted.items())}


def duplicates(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Open trials that lost against a lower number."""
    kept = {segment.number for lineage in lineages(trials).values() for segment in lineage.segments}
    return [t for t in trials if not t.state.is_finished() and t.number not in kept]
