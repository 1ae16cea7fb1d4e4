"""Several objectives, and constraints: which configurations are the best then."""

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.errors import UsageError
from pipeline.sweep.halving import promotion
from pipeline.sweep.lineage import lineages, ranked
from pipeline.sweep.objectives import check_objectives, pareto_front
from pipeline.sweep.reopening import reopen_best
from pipeline.sweep.schedule import next_segment
from tests.sweep.trials import new_study, segment, spec

BOTH = {"loss": "minimize", "accuracy": "maximize"}


def judged(*metrics: tuple[float, float], infeasible: tuple[int, ...] = ()):
    """Complete configurations with these losses and accuracies."""
    trials = []
    for number, (loss, accuracy) in enumerate(metrics):
        best = {"epoch": 9, "value": loss, "checkpoint": "c", "metrics": {"loss": loss, "accuracy": accuracy}}
        progress = {"checkpoint": "c", "epochs": 9, "best": best}
        trial = segment(number, number, "complete", until=9, epochs=9, progress=progress, values={1: loss})
        if number in infeasible:
            trial.set_constraint("memory", 0.5)
        trials.append(trial)
    return lineages(trials)


def front_of(found):
    return [one.number for one in pareto_front(ranked(found, "minimize"), BOTH)]


def test_the_front_is_what_nobody_beats_in_everything():
    found = judged((0.5, 0.8), (0.3, 0.7), (0.6, 0.8), (0.9, 0.9), (0.4, 0.6), (0.3, 0.7))
    # 2 loses against 0 in loss alone, 4 against 1 in both; equals do not beat each other.
    assert front_of(found) == [1, 5, 0, 3]
    assert [one.number for one in pareto_front(ranked(found, "minimize"), {"loss": "minimize"})] == [1]
    assert front_of({}) == []


def test_what_breaks_a_constraint_comes_after_all_that_does_not():
    found = judged((0.5, 0.8), (0.1, 0.9), (0.6, 0.8), infeasible=(1,))
    assert [one.number for one in ranked(found, "minimize")] == [0, 2, 1]
    assert front_of(found) == [0]
    assert front_of(judged((0.5, 0.8), (0.1, 0.9), infeasible=(0, 1))) == [1]  # for want of anything better


def test_it_is_promoted_after_all_others_as_well():
    paused = [segment(n, n, "paused", epochs=1, values={1: value}) for n, value in enumerate((0.1, 0.2, 0.3))]
    assert promotion(lineages(paused), [1, 3], eta=3, direction="minimize") == (0, 3)
    paused[0].set_constraint("memory", 0.5)
    assert promotion(lineages(paused), [1, 3], eta=3, direction="minimize") == (1, 3)


def test_pruners_and_some_samplers_are_for_one_metric():
    check_objectives(["loss"], sampler="cmaes", pruner="halving")
    check_objectives(BOTH, sampler="tpe", pruner="none")
    with pytest.raises(UsageError, match="--pruner halving: it compares one metric, and monitored are loss, accuracy"):
        check_objectives(BOTH, sampler="tpe", pruner="halving")
    with pytest.raises(UsageError, match="--sampler cmaes: it is for one metric"):
        check_objectives(BOTH, sampler="cmaes", pruner="none")


def test_the_study_has_a_direction_for_each_and_its_spec_comes_back(tmp_path):
    study = new_study(tmp_path, others={"accuracy": "maximize"}, constraints=("memory",), pruner="none")
    assert study.spec.objectives == BOTH
    assert not study.spec.differences(spec(others={"accuracy": "maximize"}, constraints=("memory",), pruner="none"))
    trial = next_segment(study).head
    study.constrain(trial._trial_id, "memory", 0.5)
    study.constrain(trial._trial_id, "memory", -0.5)
    study.end(trial._trial_id, TrialState.COMPLETE, "complete", 0.3, 0.8)
    (stored,) = optuna.load_study(study_name="s", storage=study.url).best_trials
    assert (stored.values, stored.constraints) == ([0.3, 0.8], {"memory": -0.5})
    with pytest.raises(UsageError, match="--top 1: study 's' has several objectives; give --configuration"):
        reopen_best(study, 1, max_epochs=20, schedule=None)
