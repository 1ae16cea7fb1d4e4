"""Reopening one configuration, to give it the whole budget."""

from pipeline.errors import UsageError
from pipeline.sweep.lineage import COMPLETE
from pipeline.sweep.study import Study


def reopen(study: Study, number: int) -> bool:
    """Makes a configuration continue to the full budget from its last checkpoint; False if it has had it.

    Repeating it does nothing more: an interrupted reopening is continued like any other segment.

    Raises:
        UsageError: there is no such configuration, or another process trains it just now.
    """
    study.close_dead()
    lineage = study.lineages().get(number)
    if lineage is None:
        raise UsageError(f"--configuration {number}: study {study.name!r} has no such configuration")
    if lineage.ended == COMPLETE:
        return False
    full = study.spec.max_epochs
    open_until_full = lineage.until >= full and (lineage.ended is None or lineage.may_continue())
    if open_until_full:
        return True
    if lineage.ended is None:
        raise UsageError(f"--configuration {number}: it is being trained; try again when it pauses")
    study.add_successor(lineage, until=full, reopened=True)
    return True
