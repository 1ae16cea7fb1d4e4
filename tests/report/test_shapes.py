"""What the plots show of a study that was killed twice."""

import pytest

from pipeline.report.shapes import as_optuna, bars, curves, descriptions, importances, survival
from tests.report.studies import found_in


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_in(tmp_path_factory.mktemp("study"))


def test_curves_have_every_epoch_once_and_the_rung_that_was_reached(found):
    assert [(one.lineage.number, one.epochs, one.rung) for one in curves(found)] == [
        (0, tuple(range(1, 10)), 9),
        (1, tuple(range(1, 10)), 9),
        (2, (1,), 1),
    ]


def test_segments_lie_in_the_lane_that_was_free_and_are_joined_to_what_was_killed(found):
    assert [(bar.trial.number, bar.lane, bar.ended, bar.after) for bar in bars(found)] == [
        (0, 0, "preempted", None),
        (1, 1, "paused", None),
        (3, 0, "lost", None),
        (2, 1, "complete", 0),
        (4, 0, "complete", 3),
        (5, 0, "paused", None),
        (6, 0, "diverged", None),
        (7, 0, "running", None),
    ]


def test_survival_counts_who_reached_a_rung_and_who_went_on(found):
    assert survival(found) == [(1, 3, 2), (3, 2, 2), (9, 2, 0)]


def test_optuna_sees_one_trial_for_each_configuration_by_its_best_value(found):
    study = as_optuna(found)
    assert [(trial.number, trial.state.name) for trial in study.trials] == [
        (0, "COMPLETE"),
        (1, "COMPLETE"),
        (2, "COMPLETE"),
        (3, "FAIL"),
        (4, "FAIL"),
    ]
    assert study.best_trial.number == 0
    assert importances(found, study) == {}  # three results tell nothing


def test_each_plot_has_words(found):
    words = descriptions(found)
    assert "2 were killed or stopped" in words["timeline"]
    assert "2 go on from one of those" in words["timeline"]
    assert "epoch 3: 2 reached it, 2 went on" in words["rungs"]
