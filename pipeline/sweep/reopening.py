"""Reopening configurations, to give them the whole budget or, extended, more than that."""

from collections.abc import Callable, Collection
from functools import partial

from pipeline.checkpoint import MlflowStore, Schedule, check_schedule, load
from pipeline.errors import UsageError
from pipeline.sweep.accepted import accepted_checkpoints
from pipeline.sweep.finish import ranking
from pipeline.sweep.lineage import COMPLETE, Lineage
from pipeline.sweep.schedule import is_search_over
from pipeline.sweep.study import Study
from pipeline.tracking import runs


def reopen_best(
    study: Study, top: int, *, max_epochs: int | None = None, schedule: Schedule | None = None
) -> tuple[tuple[int, ...], bool]:
    """Makes the best configurations continue to `max_epochs`; returns them, and whether anything is left to train.

    Without `max_epochs`, the best of those that the search did not train to the full budget are given all of it.

    Which they are is recorded in the study before anything is done about it: the same again means the same ones,
    however far they have come meanwhile.

    Raises:
        UsageError: the search is not over, has come to fewer, or one of them cannot be extended.
    """
    goal = "the end" if max_epochs is None else max_epochs
    chosen, key = study.attrs.get("chosen", {}), f"top {top} to {goal}"
    numbers = chosen.get(key)
    if study.spec.others:
        raise UsageError(f"--top {top}: study {study.name!r} has several objectives; give --configuration")
    if numbers is None:
        if not is_search_over(study):
            raise UsageError(
                f"--top {top}: the best of study {study.name!r} are not known before it is done; "
                f"continue it first, by `resume --study {study.name}`"
            )
        able = [one for one in ranking(study) if max_epochs is not None or one.ended != COMPLETE]
        if len(able) < top:
            which = "with a result" if max_epochs is not None else "that have not had all epochs; add --max-epochs"
            raise UsageError(f"--top {top}: study {study.name!r} has only {len(able)} configurations {which}")
        numbers = [lineage.number for lineage in able[:top]]
    record = partial(study.set_attr, "chosen", {**chosen, key: numbers})
    return tuple(numbers), reopen(study, numbers, max_epochs=max_epochs, schedule=schedule, record=record)


def reopen(
    study: Study,
    numbers: Collection[int],
    *,
    max_epochs: int | None = None,
    schedule: Schedule | None = None,
    record: Callable[[], None] | None = None,
) -> bool:
    """Makes configurations continue to the full budget, or to `max_epochs`, from their last checkpoints.

    Repeating it does nothing more: an interrupted reopening is continued like any other segment. `record` is called
    when it is certain that they can be, before anything is changed.

    Returns False if all of them have had it.

    Raises:
        UsageError: there is no such configuration, another process trains it just now, its checkpoint was deleted,
            its learning rate's schedule ends before and `schedule` does not say what follows, or `max_epochs` is no
            more than the study gives. Nothing was changed.
    """
    planned = study.spec.max_epochs
    if max_epochs is not None and max_epochs <= planned:
        raise UsageError(f"--max-epochs {max_epochs}: expected more than the {planned} epochs that the study gives")
    study.close_dead()
    found = study.lineages()
    for number in numbers:
        if number not in found:
            raise UsageError(f"--configuration {number}: study {study.name!r} has no such configuration")
    goal = max_epochs or planned
    left = [found[number] for number in numbers if not _has_had(found[number], goal, planned)]
    new = [lineage for lineage in left if not _is_open_until(lineage, goal)]
    for lineage in new:
        if lineage.ended is None:
            raise UsageError(f"--configuration {lineage.number}: it is being trained; try again when it pauses")
    if max_epochs is None:
        if record is not None:
            record()
        for lineage in new:
            study.add_successor(lineage, until=goal, reopened=True)
        return bool(left)
    for lineage in left:
        if lineage in new:
            _check(lineage, max_epochs, schedule)
        elif lineage.schedule != schedule:
            told = f"--schedule {lineage.schedule}" if lineage.schedule else "no --schedule"
            raise UsageError(f"#{lineage.number:02d} is being extended to {max_epochs} with {told}; say the same")
    if record is not None:
        record()
    for lineage in new:
        study.add_successor(lineage, until=goal, reopened=True, max_epochs=max_epochs, schedule=schedule)
    for lineage in left:
        if lineage.run_id is not None:
            runs.set_tags(lineage.run_id, {"extended": f"to {max_epochs} epochs, schedule {schedule or 'not named'}"})
    return bool(left)


def _has_had(lineage: Lineage, goal: int, planned: int) -> bool:
    """Whether it is complete under this budget, or a larger one; it may have stopped before by itself."""
    return lineage.ended == COMPLETE and (lineage.extended or planned) >= goal


def _is_open_until(lineage: Lineage, goal: int) -> bool:
    return lineage.until >= goal and (lineage.ended is None or lineage.may_continue())


def _check(lineage: Lineage, max_epochs: int, schedule: Schedule | None) -> None:
    """Raises UsageError if it cannot be extended from where it stands."""
    name, number = lineage.progress["checkpoint"], f"#{lineage.number:02d}"
    if name is None or lineage.run_id is None:
        return  # nothing was trained yet
    store = MlflowStore(lineage.run_id)
    if accepted_checkpoints(lineage.segments, store.names())[-1:] != [name]:
        raise UsageError(
            f"{number} cannot be extended: its last checkpoint {name} was deleted by --keep-gb, or set aside; "
            "extend another --configuration, or sweep again with a larger --keep-gb"
        )
    manifest, state = load(store, name)
    try:
        check_schedule(state, epochs=manifest.position.epoch, max_epochs=max_epochs, schedule=schedule)
    except UsageError as error:
        raise UsageError(f"{number}: {error}") from error
