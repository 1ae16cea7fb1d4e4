"""Starting warm: the sampler is shown the results of another study as well."""

import copy
import logging
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from pipeline.errors import ThawError, UsageError
from pipeline.experiment import ExperimentFile
from pipeline.sweep.lineage import COMPLETE, PAUSED, PRUNED, Lineage
from pipeline.sweep.points import ask
from pipeline.sweep.samplers import LEARNING
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study

log = logging.getLogger("pipeline")
ATTRIBUTE = "warm_start"


class _Foreign(Exception):
    """It is not a point of this search space."""


def snapshot(url: str, spec: StudySpec, file: ExperimentFile) -> dict[str, Any]:
    """Which results of the other study are taken: its newest trials, which have ended and so never change.

    Taken are configurations that have a result and lie in this search space whole: parameters that are not searched
    here are left out, but none may be missing.

    Raises:
        UsageError: there is no such study, none of its results can be taken, or they mean something else.
    """
    name = spec.warm_start
    if name is None:
        return {}
    if spec.sampler not in LEARNING:
        raise UsageError(f"--warm-start: the sampler {spec.sampler} learns from no results; {', '.join(LEARNING)} do")
    try:
        other = Study.load(name, url)
    except UsageError as error:
        raise UsageError(str(error).replace("--study", "--warm-start", 1)) from error
    theirs, ours = other.spec, spec
    if (theirs.monitor, theirs.direction) != (ours.monitor, ours.direction):
        raise UsageError(
            f"--warm-start {name}: it was to {theirs.direction} {theirs.monitor}, this one is to {ours.direction} "
            f"{ours.monitor}"
        )
    judged = [one for one in other.lineages().values() if one.best and one.ended in (PAUSED, PRUNED, COMPLETE)]
    taken = [one.head.number for one in judged if _translated(one.head, file) is not None]
    if not taken:
        raise UsageError(
            f"--warm-start {name}: none of its {len(judged)} results lies in the space that is searched here"
        )
    rest = len(judged) - len(taken)
    note = f"; {rest} lie outside of the space that is searched here" if rest else ""
    log.info("the sampler is shown %d of the %d results of study %s%s", len(taken), len(judged), name, note)
    return {ATTRIBUTE: {"study": name, "trials": taken}}


def others(study: Study, file: ExperimentFile) -> list[Lineage]:
    """The results that a study was started with, as configurations whose numbers are below 0."""
    record = study.attrs.get(ATTRIBUTE)
    if record is None:
        return []
    try:
        trials = {trial.number: trial for trial in Study.load(record["study"], study.url).trials()}
        found = [_translated(trials[number], file) for number in record["trials"]]
    except (UsageError, KeyError) as error:
        raise ThawError(
            f"study {study.name!r} was started with results of {record['study']!r}, which is gone"
        ) from error
    kept = [trial for trial in found if trial is not None]
    return [Lineage(number=place - len(kept), segments=(trial,)) for place, trial in enumerate(kept)]


def _translated(trial: FrozenTrial, file: ExperimentFile) -> FrozenTrial | None:
    """The trial as one of this search space, None if it is none."""

    def choose(name: str, distribution: BaseDistribution) -> Any:
        value = trial.params.get(name)
        try:
            if name in trial.params and distribution._contains(distribution.to_internal_repr(value)):
                return value
        except ValueError:  # not one of the choices
            pass
        raise _Foreign

    try:
        asked = ask(file, choose)
    except ThawError as error:
        if isinstance(error.__cause__, _Foreign):
            return None
        raise
    found = copy.copy(trial)
    found.params, found.distributions = dict(asked.params), dict(asked.distributions)
    found.system_attrs = {}  # what its own sampler noted means nothing here
    return found
