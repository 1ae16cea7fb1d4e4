"""Stopping rules by name, and what they are shown."""

import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from pipeline.errors import UsageError
from pipeline.sweep.pruners import PAUSING, PRUNERS, RULES, check_pruner, make_pruner, pruning_view
from tests.sweep.trials import new_study, spec

ARGUMENTS = {"threshold": {"upper": 1.0}}  # it has no defaults that make sense


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_that_is_offered_can_be_made(name):
    arguments = ARGUMENTS.get(name, {})
    check_pruner(name, arguments)
    assert isinstance(make_pruner(spec(pruner=name, pruner_args=arguments)), BasePruner)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(UsageError, match=f"--pruner best: expected one of {', '.join(PRUNERS)}"):
        check_pruner("best", {})
    assert {*PRUNERS} == {*PAUSING, *RULES, "none"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("percentile", {"percentil": 5}, "percentile has no 'percentil'; it takes percentile, n_startup_trials, "),
        ("percentile", {"percentile": 500}, "percentile: Percentile must be between 0 and 100"),
        ("median", {"n_warmup_steps": "long"}, "median: .*it takes n_startup_trials, n_warmup_steps"),
        ("threshold", {}, "threshold: Either lower or upper must be specified; it takes lower, upper"),
        ("patient", {"wrapped_pruner": "best"}, "patient: wrapped_pruner='best' is not median, percentile"),
        ("successive-halving", {"min_resource": 3}, "has no 'min_resource'; it takes bootstrap_count"),
        ("halving", {"eta": 2}, "halving has no 'eta'; it takes none"),
    ],
)
def test_arguments_that_a_pruner_does_not_take_are_refused_with_those_it_does(name, arguments, message):
    with pytest.raises(UsageError, match=message) as raised:
        check_pruner(name, arguments)
    assert "\n" not in str(raised.value)


def started(study, number, values):
    """A configuration that is trained, and has reported these epochs."""
    study.add_configuration(number, until=9)
    assert study.claim(study.lineages()[number].head)
    trial_id = study.lineages()[number].head._trial_id
    for epoch, value in enumerate(values, start=1):
        study.report(trial_id, epoch, value)
    return trial_id


def is_pruned(study, number):
    lineage = study.lineages()[number]
    view = pruning_view(study, study.spec)
    return view.judges(lineage, study.storage.get_trial(lineage.head._trial_id))


@pytest.mark.parametrize(
    ("name", "arguments", "better", "worse"),
    [
        ("median", {"n_startup_trials": 3}, [0.5], [0.7]),
        ("percentile", {"n_startup_trials": 3, "percentile": 40}, [0.5], [0.7]),
        ("patient", {"patience": 1, "wrapped_pruner": None}, [0.9, 0.8, 0.7], [0.7, 0.8, 0.9]),
        ("wilcoxon", {"p_threshold": 0.3}, [0.2, 0.2, 0.2], [0.9, 0.9, 0.9]),
        ("threshold", {"upper": 0.6}, [0.5], [0.7]),
        ("successive-halving", {}, [0.2], [0.9]),
    ],
)
def test_each_rule_prunes_what_is_worse_and_says_the_same_after_a_kill(tmp_path, name, arguments, better, worse):
    study = new_study(tmp_path, pruner=name, pruner_args=arguments)
    for number, value in enumerate([0.4, 0.6, 0.8]):
        trial_id = started(study, number, [value] * 3)
        study.end(trial_id, TrialState.COMPLETE, "complete", value)
    for number, values, pruned in ((3, better, False), (4, worse, True)):
        trial_id = started(study, number, values)
        study.set(trial_id, "config", {"lr": 0.1})
        assert is_pruned(study, number) == pruned
        assert is_pruned(study, number) == pruned  # killed right after the rule has looked
        study.end(trial_id, TrialState.FAIL, "lost")
        study.add_successor(study.lineages()[number], until=9)
        assert is_pruned(study, number) == pruned


def test_successive_halving_counts_each_configuration_once_at_each_rung(tmp_path):
    study = new_study(tmp_path, pruner="successive-halving")
    pruned = []
    for number, value in enumerate([0.5, 0.4, 0.6, 0.45, 0.44, 0.3]):
        trial_id = started(study, number, [value])
        is_pruned(study, number)
        pruned.append(is_pruned(study, number))
        study.end(trial_id, TrialState.PRUNED, "pruned")
    # The first and who is better than all before, until a third of them is more than one.
    assert pruned == [False, False, True, True, True, False]
