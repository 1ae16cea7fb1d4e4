"""Samplers by name, and the view of a study that they are given."""

import copy
import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence

import optuna
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import UsageError
from pipeline.experiment import seed_for
from pipeline.sweep.cmaes import CmaEs
from pipeline.sweep.lineage import COMPLETE, DIVERGED, PAUSED, PRUNED, Lineage
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study

SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc", "grid")
LEARNING = ("tpe", "gp", "cmaes")  # those that look at results
# What these learn from are values alone: a paused configuration counts by the best of the epochs it has had. Optuna
# would show them none but complete ones, of which halving makes few. TPE knows what to do with the others.
_BY_VALUE = ("gp", "cmaes")


class StudyView(optuna.Study):
    """A study as Optuna's parts see it: one trial per configuration, its newest segment.

    Superseded segments are the same point again and would be counted twice. Trials are numbered by their
    configuration, so that what is suggested doesn't depend on how often others were interrupted.
    """

    _found: list[FrozenTrial] | None = None
    _lineages: Callable[[], Mapping[int, Lineage]]

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if self._found is None or not use_cache:
            self._found = self._shown(list(self._lineages().values()))
        chosen = [trial for trial in self._found if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _shown(self, found: Sequence[Lineage]) -> list[FrozenTrial]:
        return [lineage.as_one for lineage in found]


class SamplingView(StudyView):
    """What a sampler learns from.

    A configuration that diverged is shown as the worst there is: samplers leave out what has failed.
    """

    by_value: bool
    others: Sequence[Lineage] = ()  # of the study it starts warm from; their numbers are below 0

    def _shown(self, found: Sequence[Lineage]) -> list[FrozenTrial]:
        every = [*self.others, *found]
        if not self.by_value:
            return [_as_pruned(lineage) if lineage.ended == DIVERGED else lineage.as_one for lineage in every]
        minimize = self.direction is optuna.study.StudyDirection.MINIMIZE
        values = [value for lineage in every if (value := _value(lineage)) is not None]
        worst = (max if minimize else min)(values, default=None)
        return [_as_complete(lineage, worst) for lineage in every]


def _value(lineage: Lineage) -> float | None:
    judged = lineage.best is not None and lineage.ended in (PAUSED, PRUNED, COMPLETE)
    return float((lineage.best or {})["value"]) if judged else None


def _as_pruned(lineage: Lineage) -> FrozenTrial:
    trial = copy.copy(lineage.as_one)
    trial.state = TrialState.PRUNED
    trial.intermediate_values = {**trial.intermediate_values, lineage.epochs + 1: math.nan}
    return trial


def _as_complete(lineage: Lineage, worst: float | None) -> FrozenTrial:
    trial = copy.copy(lineage.as_one)
    value = worst if lineage.ended == DIVERGED else _value(lineage)
    if value is not None:
        trial.state, trial.values = TrialState.COMPLETE, [value]
    return trial


class _Qmc(QMCSampler):
    """The point of a Sobol sequence that has the configuration's number.

    Optuna counts the points in the study: one that is drawn again after a kill would be another, and two workers could
    draw the same.
    """

    def __init__(self, *, seed: int, configuration: int) -> None:
        super().__init__(
            scramble=True,
            seed=seed_for(seed, -1),  # of the sequence
            independent_sampler=RandomSampler(seed=seed_for(seed, configuration)),
        )
        self._configuration = configuration

    def _find_sample_id(self, *_: object) -> int:
        return self._configuration


def _sampler(name: str, *, seed: int, configuration: int) -> BaseSampler:
    """A sampler whose draws are a function of (seed, configuration), and of the results if it looks at them."""
    drawn = seed_for(seed, configuration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                return TPESampler(seed=drawn)
            case "gp":
                return GPSampler(seed=drawn)
            case "cmaes":
                return CmaEs(seed=drawn)
            case "qmc":
                return _Qmc(seed=seed, configuration=configuration)
    return RandomSampler(seed=drawn)  # a grid's points are given, and leave nothing to draw


def sampling_view(study: Study, spec: StudySpec, configuration: int, others: Sequence[Lineage] = ()) -> SamplingView:
    """The study as the sampler sees it that draws this configuration."""
    sampler = _sampler(spec.sampler, seed=spec.seed, configuration=configuration)
    view = SamplingView(study.name, study.storage, sampler=sampler)
    view._lineages = study.lineages
    view.by_value = spec.sampler in _BY_VALUE
    view.others = others
    return view


def numbered_trial(view: StudyView, trial_id: int, configuration: int) -> optuna.Trial:
    """The trial that `suggest` draws from, numbered as in the view: samplers leave it out by its number."""
    trial = optuna.Trial(view, trial_id)
    trial._cached_frozen_trial.number = configuration
    return trial


def check_sampler(name: str) -> None:
    """Raises UsageError for a sampler that is not offered."""
    if name not in SAMPLERS:
        raise UsageError(f"--sampler {name}: expected one of {', '.join(SAMPLERS)}")
