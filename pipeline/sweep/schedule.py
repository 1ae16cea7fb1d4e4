"""What is to be done next in a study: one decision, from what its trials say."""

import random
import time
from collections.abc import Collection, Mapping
from typing import Literal

from optuna.trial import TrialState

from pipeline.errors import ThawError
from pipeline.sweep import budget, halving
from pipeline.sweep.lineage import ALIKE, Lineage, failing_alike
from pipeline.sweep.pruners import PAUSING
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
_CHANCE = random.SystemRandom()  # training's own random state is not touched


def next_segment(
    study: Study, *, only: Collection[int] | None = None, max_total_epochs: int | None = None
) -> Lineage | Literal["wait", "done"]:
    """Claims the next segment for this process.

    Interrupted configurations come first, then promotions, then new configurations. `only` restricts it to
    what is waiting or interrupted of some configurations, for a reopened one.

    To read all trials takes long, when there are many: it is done once. Until something is claimed, only what can have
    changed is read again, right before something is created and after that. So two that look at the same time hardly
    ever create the same; and what others have just created, they are about to claim.

    Returns the lineage whose newest segment is now this process's own; "wait" while others hold all there is
    to do; "done" when nothing is left, or all configurations together have had `max_total_epochs`.

    Raises:
        ThawError: the first configurations have all failed alike, so that all would.
    """
    spec = study.spec
    trials = study.trials()
    if study.close_dead(trials=trials):
        trials = study.trials()
    open_to_me = {trial._trial_id for trial in trials}
    pause_s = FIRST_PAUSE_S
    while True:
        found = study.lineages(trials)
        if only is None and failing_alike(found, spec.code):
            raise ThawError(
                f"study {study.name!r}: the first {ALIKE} configurations all failed alike, so the sweep stops here: "
                f"{found[0].head.user_attrs.get('error')}; traceback.txt in their MLflow runs says more; "
                "mend the experiment, and run the same command with --accept-change true"
            )
        mine = _chosen(found, only)
        if max_total_epochs is not None and budget.left(found, max_total_epochs) <= 0:
            return "wait" if any(lineage.head.state is TrialState.RUNNING for lineage in mine.values()) else "done"
        waiting = [
            one for one in mine.values() if one.head.state is TrialState.WAITING and one.head._trial_id in open_to_me
        ]
        claimed = next((one for one in waiting if study.claim(one.head)), None)
        if claimed is not None:
            if max_total_epochs is None or budget.grant(study, claimed.number, max_total_epochs):
                return study.renewed(claimed)
            return "wait"  # others hold what was left
        trials = study.with_newer(trials, again={one.head.number for one in waiting})  # others were faster with these
        found = study.lineages(trials)
        mine = _chosen(found, only)
        created = _continue(study, mine)
        if created is None and only is None:
            created = _grow(study, spec, found)
        if created is None:
            return "wait" if any(lineage.ended is None for lineage in mine.values()) else "done"
        open_to_me.add(created)
        trials = study.with_newer(trials)  # whatever came before it, too: a lower number wins
        if created not in {one.head._trial_id for one in study.lineages(trials).values()}:
            # Another has created the same a moment before. Of many who try at once most would lose again.
            time.sleep(_CHANCE.uniform(0, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _chosen(found: Mapping[int, Lineage], only: Collection[int] | None) -> dict[int, Lineage]:
    return {number: lineage for number, lineage in found.items() if only is None or number in only}


def open_segments(
    study: Study, *, only: Collection[int] | None = None, max_total_epochs: int | None = None
) -> int | None:
    """How many segments could be claimed now, at least; None when `next_segment` would be "done". Changes nothing."""
    spec, found = study.spec, study.lineages()
    mine = list(_chosen(found, only).values())
    running = any(one.head.state is TrialState.RUNNING for one in mine)
    count = sum(one.head.state is TrialState.WAITING or one.may_continue() for one in mine)
    if only is None:
        count += max(spec.configurations - len(found), int(_growth(spec, found) is not None))
    if max_total_epochs is not None and budget.left(found, max_total_epochs) <= 0:
        count = 0
    return count if count or running else None


def first_goal(spec: StudySpec, number: int) -> int:
    """The epoch up to which a new configuration trains before it is compared."""
    return _rungs_of(spec, number)[0] if spec.pruner in PAUSING else spec.max_epochs


def is_over(study: Study) -> bool:
    """Whether nothing is left to do, now or ever; changes nothing."""
    found = study.lineages()
    return not any(one.ended is None or one.may_continue() for one in found.values()) and (
        _growth(study.spec, found) is None
    )


def is_search_over(study: Study) -> bool:
    """Whether the search is over, whatever is left to do of a configuration that was reopened by hand."""
    found = study.lineages()
    searched = [one for one in found.values() if not one.reopened]
    return not any(one.ended is None or one.may_continue() for one in searched) and _growth(study.spec, found) is None


def _continue(study: Study, found: Mapping[int, Lineage]) -> int | None:
    """Creates the successor of a segment that broke off, and returns the id of its trial; None if there is none."""
    broken = next((lineage for lineage in found.values() if lineage.may_continue()), None)
    return None if broken is None else study.add_successor(broken, until=broken.until)


def _grow(study: Study, spec: StudySpec, found: Mapping[int, Lineage]) -> int | None:
    """Creates a promotion or a new configuration, and returns the id of its trial; None if there is neither."""
    growth = _growth(spec, found)
    if growth is None:
        return None
    number, until = growth
    if number in found:
        return study.add_successor(found[number], until=until)
    point = spec.points[number] if number < len(spec.points) else None
    return study.add_configuration(number, until=until, config=spec.config, point=point)


def _growth(spec: StudySpec, found: Mapping[int, Lineage]) -> tuple[int, int] | None:
    """Which configuration is to be trained next, and until which epoch; one that is not there yet is new."""
    if spec.pruner in PAUSING and (promoted := _promotion(spec, found)) is not None:
        return promoted
    if len(found) < spec.configurations:
        return len(found), first_goal(spec, len(found))
    idle = not any(lineage.ended is None and not lineage.reopened for lineage in found.values())
    if spec.pruner in PAUSING and idle:
        return halving.last_promotion(found, _rungs(spec), direction=spec.direction)
    return None


def _promotion(spec: StudySpec, found: Mapping[int, Lineage]) -> tuple[int, int] | None:
    """The promotion to the highest rung; it is inside a bracket that configurations are compared."""
    brackets: dict[int, dict[int, Lineage]] = {}
    for number, lineage in found.items():
        brackets.setdefault(_rungs_of(spec, number)[0], {})[number] = lineage
    rungs = _rungs(spec)
    promoted = [
        halving.promotion(members, rungs[rungs.index(first) :], eta=spec.eta, direction=spec.direction)
        for first, members in sorted(brackets.items())
    ]
    return max((one for one in promoted if one is not None), key=lambda one: one[1], default=None)


def _rungs_of(spec: StudySpec, number: int) -> list[int]:
    """The rungs at which a configuration is compared."""
    rungs = _rungs(spec)
    return rungs[halving.bracket_of(number, len(rungs), eta=spec.eta) :] if spec.pruner == "hyperband" else rungs


def _rungs(spec: StudySpec) -> list[int]:
    return halving.rungs(min_epochs=spec.min_epochs, max_epochs=spec.max_epochs, eta=spec.eta)
