"""Samplers and pruners by name, and the view of a study that they are given."""

import copy
import math
import warnings
from collections.abc import Container
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import UsageError
from pipeline.experiment import seed_for
from pipeline.sweep.lineage import DIVERGED, lineages

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
}
PRUNERS = {
    "halving": optuna.pruners.NopPruner,  # pausing at rungs and promotion are `halving.py`'s
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "successive-halving": optuna.pruners.SuccessiveHalvingPruner,
}


class StudyView(optuna.Study):
    """A study as samplers and pruners see it: one trial per configuration, its newest segment.

    Superseded segments are the same point again and would be counted twice. Trials are numbered by their
    configuration, so that what is suggested doesn't depend on how often others were interrupted. A configuration that
    diverged is shown as pruned with NaN, the worst there is: samplers leave out what has failed.
    """

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        shown = []
        for number, lineage in lineages(trials).items():
            trial = copy.deepcopy(lineage.head) if deepcopy else copy.copy(lineage.head)
            trial.number = number
            if lineage.ended == DIVERGED:
                trial.state = TrialState.PRUNED
                trial.intermediate_values = {**trial.intermediate_values, lineage.epochs + 1: math.nan}
            if states is None or trial.state in states:
                shown.append(trial)
        return shown


def numbered_trial(view: StudyView, trial_id: int, configuration: int) -> optuna.Trial:
    """The trial that `suggest` draws from, numbered as in the view: samplers leave it out by its number."""
    trial = optuna.Trial(view, trial_id)
    trial._cached_frozen_trial.number = configuration
    return trial


def check_names(*, sampler: str, pruner: str) -> None:
    """Raises UsageError for a name that is not offered."""
    for flag, name, offered in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if name not in offered:
            raise UsageError(f"--{flag} {name}: expected one of {', '.join(offered)}")


def view(
    *,
    study: str,
    storage: optuna.storages.BaseStorage,
    sampler: str,
    pruner: str,
    seed: int,
    configuration: int,
) -> StudyView:
    """The study with a sampler whose draws are a function of (seed, configuration) and of the results so far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # GPSampler's notice
        drawn: Any = SAMPLERS[sampler](seed=seed_for(seed, configuration))
    return StudyView(study, storage, sampler=drawn, pruner=PRUNERS[pruner]())
