"""Pruners by name: pausing at rungs with promotion, which is ours, and Optuna's as stopping rules."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.trial import FrozenTrial

from pipeline.errors import UsageError
from pipeline.sweep.halving import rungs
from pipeline.sweep.lineage import Lineage
from pipeline.sweep.samplers import StudyView
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study

PAUSING = ("halving", "hyperband")  # these pause configurations at rungs and promote the best: see `halving`


def _patient(patience: int = 3, min_delta: float = 0.0, wrapped_pruner: str | None = "median") -> BasePruner:
    """Prunes what has not improved for `patience` epochs and what the wrapped pruner would prune as well."""
    if wrapped_pruner not in (None, "median", "percentile", "threshold", "wilcoxon"):
        raise ValueError(f"wrapped_pruner={wrapped_pruner!r} is not median, percentile, threshold, wilcoxon or null")
    return PatientPruner(RULES[wrapped_pruner]() if wrapped_pruner else None, patience, min_delta)


def _percentile(
    percentile: float = 25.0,
    n_startup_trials: int = 5,
    n_warmup_steps: int = 0,
    interval_steps: int = 1,
    n_min_trials: int = 1,
) -> BasePruner:
    """Prunes what is not among the best `percentile` at its epoch."""
    return PercentilePruner(percentile, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials)


def _successive_halving(bootstrap_count: int = 0, *, min_resource: int = 1, reduction_factor: int = 3) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource, reduction_factor, bootstrap_count=bootstrap_count)


# Stopping rules. Their arguments are Optuna's, and so are the defaults, but where one here says otherwise.
RULES: Mapping[str, Callable[..., BasePruner]] = {
    "median": MedianPruner,
    "percentile": _percentile,
    "patient": _patient,
    "wilcoxon": WilcoxonPruner,
    "threshold": ThresholdPruner,
    "successive-halving": _successive_halving,
}
PRUNERS = (*PAUSING, *RULES, "none")
_RUNG = "completed_rung_"  # prefix of SuccessiveHalvingPruner's notes
_OURS = {"min_resource", "reduction_factor"}  # --min-epochs and --eta say it


def make_pruner(spec: StudySpec) -> BasePruner:
    """The stopping rule of a study."""
    return _make(spec.pruner, spec.pruner_args, min_epochs=spec.min_epochs, eta=spec.eta)


def check_pruner(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises UsageError for a pruner that is not offered, or arguments that it does not have or take."""
    if name not in PRUNERS:
        raise UsageError(f"--pruner {name}: expected one of {', '.join(PRUNERS)}")
    offered = [one for one in inspect.signature(RULES[name]).parameters if one not in _OURS] if name in RULES else []
    for argument in arguments:
        if argument not in offered:
            raise UsageError(f"--pruner-args: {name} has no {argument!r}; it takes {', '.join(offered) or 'none'}")
    try:
        _make(name, arguments, min_epochs=1, eta=3)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--pruner-args, {name}: {str(error).rstrip('.')}; it takes {', '.join(offered)}") from error


def _make(name: str, arguments: Mapping[str, Any], *, min_epochs: int, eta: int) -> BasePruner:
    if name not in RULES:
        return NopPruner()
    given = dict(arguments)
    if name == "successive-halving":
        given |= {"min_resource": min_epochs, "reduction_factor": eta}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Patient's and Wilcoxon's notice
        return RULES[name](**given)


class PruningView(StudyView):
    """A study as a stopping rule sees it that decides about one configuration.

    SuccessiveHalvingPruner notes in each trial which rungs it has completed, before it says what follows. A worker that
    is killed right after that would find the note, and let pass what was to be pruned. So what is shown of them is what
    the reported values say: of the others all, of the configuration itself what lies before its last epoch.
    """

    spec: StudySpec
    _number: int  # of the configuration that is judged

    def judges(self, lineage: Lineage, trial: FrozenTrial) -> bool:
        """Whether to prune a configuration's newest segment, after the last epoch that the trial says."""
        self._number = lineage.number
        return bool(self.pruner.prune(self, self._with_rungs(copy.copy(trial), before=trial.last_step)))

    def _shown(self, found: Sequence[Lineage]) -> list[FrozenTrial]:
        return [
            self._with_rungs(trial, before=trial.last_step if trial.number == self._number else None)
            for trial in (copy.copy(lineage.as_one) for lineage in found)
        ]

    def _with_rungs(self, trial: FrozenTrial, *, before: int | None) -> FrozenTrial:
        if self.spec.pruner == "successive-halving":
            steps = rungs(min_epochs=self.spec.min_epochs, max_epochs=self.spec.max_epochs, eta=self.spec.eta)
            others = {name: value for name, value in trial.system_attrs.items() if not name.startswith(_RUNG)}
            trial.system_attrs = others | {
                f"{_RUNG}{place}": trial.intermediate_values[step]
                for place, step in enumerate(steps[:-1])
                if step in trial.intermediate_values and (before is None or step < before)
            }
        return trial


def pruning_view(study: Study, spec: StudySpec) -> PruningView:
    """The study as its stopping rule sees it."""
    view = PruningView(study.name, study.storage, pruner=make_pruner(spec))
    view._lineages = study.lineages
    view.spec = spec
    return view
