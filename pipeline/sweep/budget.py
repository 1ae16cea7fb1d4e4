"""A budget of epochs for all configurations of a study together.

Who claims a segment is granted what is left, and stops there: training asks nobody while it runs. What others hold
counts as if it was spent, so that no number of workers trains more than the budget.
"""

from collections.abc import Mapping

from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.lineage import PREEMPTED, Lineage
from pipeline.sweep.study import Study

GRANTED = "granted"  # attribute of a trial: the epoch at which the budget ends it


def left(found: Mapping[int, Lineage], max_total_epochs: int) -> int:
    """Epochs that are neither trained nor held by somebody who trains."""
    return max_total_epochs - sum(_held(lineage) for lineage in found.values())


def spent(found: Mapping[int, Lineage]) -> int:
    """Epochs that all configurations have trained, and committed."""
    return sum(lineage.epochs for lineage in found.values())


def grant(study: Study, number: int, max_total_epochs: int) -> bool:
    """Says in a claimed trial how far it may train. False: others hold what is left, and it was ended, resumably.

    Of two who claim at once at least the later sees the other's claim, and takes all that it may want for held.
    """
    found = study.lineages()
    mine = found.pop(number)
    may = left(found, max_total_epochs) - mine.epochs
    if may > 0:
        study.set(mine.head._trial_id, GRANTED, min(mine.until, mine.epochs + may))
    else:
        study.end(mine.head._trial_id, TrialState.FAIL, PREEMPTED)
    return may > 0


def granted(segment: FrozenTrial) -> int | None:
    """The epoch at which the budget ends a segment; None if it has not been told."""
    return segment.user_attrs.get(GRANTED)


def _held(lineage: Lineage) -> int:
    """Epochs trained and, while it runs, granted; all that it may want until it is told."""
    if lineage.head.state is not TrialState.RUNNING:
        return lineage.epochs
    return max(lineage.epochs, granted(lineage.head) or lineage.until)
