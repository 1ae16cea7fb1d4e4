"""What is to be done next in a study: one decision, from what its trials say."""

from collections.abc import Collection, Mapping
from typing import Literal

from optuna.trial import TrialState

from pipeline.errors import ThawError
from pipeline.sweep import halving
from pipeline.sweep.lineage import ALIKE, Lineage, failing_alike
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study


def next_segment(study: Study, *, only: Collection[int] | None = None) -> Lineage | Literal["wait", "done"]:
    """Claims the next segment for this process.

    Interrupted configurations come first, then promotions, then new configurations. `only` restricts it to
    what is waiting or interrupted of some configurations, for a reopened one.

    Returns the lineage whose newest segment is now this process's own; "wait" while others hold all there is
    to do; "done" when nothing is left.

    Raises:
        ThawError: the first configurations have all failed alike, so that all would.
    """
    spec = study.spec
    while True:
        study.close_dead()
        found = study.lineages()
        if only is None and failing_alike(found, spec.code):
            raise ThawError(
                f"study {study.name!r}: the first {ALIKE} configurations all failed alike, so the sweep stops here: "
                f"{found[0].head.user_attrs.get('error')}; traceback.txt in their MLflow runs says more; "
                "mend the experiment, and run the same command with --accept-change true"
            )
        mine = {n: lineage for n, lineage in found.items() if only is None or n in only}
        for lineage in mine.values():
            if lineage.head.state is TrialState.WAITING and study.claim(lineage.head):
                return study.lineages()[lineage.number]
        if any(lineage.head.state is TrialState.WAITING for lineage in mine.values()):
            continue  # another was faster: look again
        if not (_continue(study, mine) or (only is None and _grow(study, spec, found))):
            return "wait" if any(lineage.ended is None for lineage in mine.values()) else "done"


def first_goal(spec: StudySpec) -> int:
    """The epoch up to which a new configuration trains before it is compared."""
    return _rungs(spec)[0] if spec.pruner == "halving" else spec.max_epochs


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


def _continue(study: Study, found: Mapping[int, Lineage]) -> bool:
    for lineage in found.values():
        if lineage.may_continue():
            study.add_successor(lineage, until=lineage.until)
            return True
    return False


def _grow(study: Study, spec: StudySpec, found: Mapping[int, Lineage]) -> bool:
    """Creates a promotion or a new configuration; False if there is neither."""
    growth = _growth(spec, found)
    if growth is None:
        return False
    number, until = growth
    if number in found:
        study.add_successor(found[number], until=until)
    else:
        study.add_configuration(number, until=until, config=spec.config)
    return True


def _growth(spec: StudySpec, found: Mapping[int, Lineage]) -> tuple[int, int] | None:
    """Which configuration is to be trained next, and until which epoch; one that is not there yet is new."""
    rungs = _rungs(spec)
    promoted = None
    if spec.pruner == "halving":
        promoted = halving.promotion(found, rungs, eta=spec.eta, direction=spec.direction)
    if promoted is not None:
        return promoted
    if len(found) < spec.configurations:
        return len(found), first_goal(spec)
    idle = not any(lineage.ended is None and not lineage.reopened for lineage in found.values())
    if spec.pruner == "halving" and idle:
        return halving.last_promotion(found, rungs, direction=spec.direction)
    return None


def _rungs(spec: StudySpec) -> list[int]:
    return halving.rungs(min_epochs=spec.min_epochs, max_epochs=spec.max_epochs, eta=spec.eta)
