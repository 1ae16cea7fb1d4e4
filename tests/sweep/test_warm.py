"""A study that starts with the results of another."""

import pytest
from optuna.trial import TrialState

from pipeline.errors import ThawError, UsageError
from pipeline.sweep.samplers import sampling_view
from pipeline.sweep.study import Study
from pipeline.sweep.warm import others, snapshot
from tests.sweep.test_points import file_of
from tests.sweep.test_samplers import draw, pause
from tests.sweep.trials import new_study, spec


def suggest(trial):
    trial.suggest_float("lr", 1e-4, 1, log=True)


def narrower(trial):
    trial.suggest_float("lr", 1e-2, 1, log=True)


def other(trial):
    suggest(trial)
    trial.suggest_float("dropout", 0, 1)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A database with a study `s` of six configurations that have a result, and one that failed."""
    study = new_study(tmp_path_factory.mktemp("warm"))
    for number in range(7):
        study.add_configuration(number, until=1)
        assert study.claim(study.lineages()[number].head)
        draw(study, number, "cmaes")  # which leaves its notes in the trials
        if number == 3:
            study.end(study.lineages()[number].head._trial_id, TrialState.FAIL, "bug")
        else:
            pause(study, number, 0.1 * number)
    return study.url


def begun(url, name, file, sampler="tpe"):
    given = spec(warm_start="s", sampler=sampler)
    return Study.open(name, url, given, accept_change=False, first=lambda: snapshot(url, given, file))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_results_are_shown_under_numbers_of_their_own_as_points_of_this_space(url, tmp_path, sampler):
    file = file_of(suggest, tmp_path)
    study = begun(url, sampler, file, sampler)
    study.add_configuration(0, until=1)
    view = sampling_view(study, study.spec, 0, others(study, file))
    shown = view.get_trials(states=(TrialState.PRUNED, TrialState.COMPLETE))
    assert [trial.number for trial in shown] == [-6, -5, -4, -3, -2, -1]
    assert [sorted(trial.params) for trial in shown] == [["lr"]] * 6
    assert [trial.system_attrs for trial in shown] == [{}] * 6
    values = [trial.value if sampler != "tpe" else trial.intermediate_values[1] for trial in shown]
    assert values == [0.1 * number for number in (0, 1, 2, 4, 5, 6)]


def test_only_what_lies_in_this_space_is_taken(url, tmp_path):
    file = file_of(narrower, tmp_path)
    study = begun(url, "narrower", file)
    found = others(study, file)
    everything = others(begun(url, "everything", file_of(suggest, tmp_path)), file_of(suggest, tmp_path))
    assert [one.head.params for one in found] == [
        one.head.params for one in everything if one.head.params["lr"] >= 1e-2
    ]
    assert 0 < len(found) < len(everything)
    assert [one.number for one in found] == list(range(-len(found), 0))


def test_what_the_other_study_comes_to_later_changes_nothing(url, tmp_path):
    file = file_of(suggest, tmp_path)
    study = begun(url, "early", file)
    before = [(one.number, one.head.number) for one in others(study, file)]
    theirs = Study.load("s", url)
    theirs.add_successor(theirs.lineages()[0], until=3)
    assert theirs.claim(theirs.lineages()[0].head)
    assert [(one.number, one.head.number) for one in others(begun(url, "early", file), file)] == before


@pytest.mark.parametrize(
    ("changes", "space", "message"),
    [
        ({"warm_start": "nobody"}, suggest, "--warm-start nobody: no such study .*there: "),
        ({"sampler": "qmc"}, suggest, "--warm-start: the sampler qmc learns from no results; tpe, gp, cmaes do"),
        ({"direction": "maximize"}, suggest, "it was to minimize loss, this one is to maximize loss"),
        ({}, other, r"none of its \d results lies in the space that is searched here"),
    ],
)
def test_results_that_mean_nothing_here_are_refused_and_no_study_is_left_behind(url, tmp_path, changes, space, message):
    given = spec(**{"warm_start": "s", "sampler": "tpe", **changes})
    file = file_of(space, tmp_path)
    with pytest.raises(UsageError, match=message):
        Study.open("refused", url, given, accept_change=False, first=lambda: snapshot(url, given, file))
    with pytest.raises(UsageError, match="no such study"):
        Study.load("refused", url)


def test_a_study_whose_results_are_gone_says_so(url, tmp_path):
    file = file_of(suggest, tmp_path)
    study = begun(url, "orphan", file)
    study.set_attr("warm_start", {"study": "deleted", "trials": [0]})
    with pytest.raises(ThawError, match="started with results of 'deleted', which is gone"):
        others(study, file)
