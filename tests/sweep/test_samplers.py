"""What samplers see, and that their draws do not depend on how often others were interrupted."""

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.errors import UsageError
from pipeline.sweep.samplers import SAMPLERS, check_sampler, numbered_trial, sampling_view
from tests.sweep.trials import checkpoint_of, new_study, spec

CONFIGURATIONS = 16  # TPE draws at random until it has ten


def seen_from(study, configuration=0, sampler="tpe", seed=0):
    return sampling_view("s", study.storage, spec(sampler=sampler, seed=seed), configuration)


def draw(study, number, sampler="tpe", seed=0, *, kept=True):
    """Draws a configuration in its claimed trial, as a worker does; not `kept`: it is killed before it says so."""
    trial = study.lineages()[number].head
    drawn = numbered_trial(seen_from(study, number, sampler, seed), trial._trial_id, number)
    lr, width = drawn.suggest_float("lr", 1e-4, 1, log=True), drawn.suggest_int("width", 4, 128)
    if kept:
        study.set(trial._trial_id, "config", {"lr": lr, "width": width})
    return lr, width


def pause(study, number, value):
    trial = study.lineages()[number].head
    name = checkpoint_of(trial.number, 1)
    best = {"epoch": 1, "value": value, "checkpoint": name}
    study.set(trial._trial_id, "progress", {"checkpoint": name, "epochs": 1, "best": best})
    study.report(trial._trial_id, 1, value)
    study.end(trial._trial_id, TrialState.PRUNED, "paused")


def lose(study, number):
    study.end(study.lineages()[number].head._trial_id, TrialState.FAIL, "lost")
    study.add_successor(study.lineages()[number], until=1)
    assert study.claim(study.lineages()[number].head)


def search(study, sampler, interrupted=(), seed=0):
    """Draws all configurations one after the other; those interrupted are lost while they are drawn and after it."""
    drawn = []
    for number in range(CONFIGURATIONS):
        study.add_configuration(number, until=1)
        assert study.claim(study.lineages()[number].head)
        if number in interrupted:
            draw(study, number, sampler, seed, kept=False)
            lose(study, number)
        drawn.append(draw(study, number, sampler, seed))
        if number in interrupted:
            lose(study, number)
        pause(study, number, abs(drawn[-1][0] - 0.1) + drawn[-1][1] / 128)
    return drawn


def test_a_view_shows_each_configuration_once_by_its_newest_segment_under_its_number(tmp_path):
    study = new_study(tmp_path)
    for number in range(3):
        study.add_configuration(number, until=1)
        study.claim(study.lineages()[number].head)
        draw(study, number, "random")
        pause(study, number, 0.1)
    study.add_successor(study.lineages()[0], until=3)
    study.add_configuration(3, until=1)
    shown = seen_from(study).get_trials()
    assert [trial.number for trial in shown] == [0, 1, 2, 3]
    assert [trial._trial_id for trial in shown] == [
        trial._trial_id
        for trial in sorted(study.trials(), key=lambda t: (t.user_attrs["configuration"], -t.number))
        if trial.number != 0
    ]
    assert [trial.state for trial in shown] == [
        TrialState.WAITING,
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.WAITING,
    ]
    assert [trial.number for trial in seen_from(study).get_trials(states=(TrialState.PRUNED,))] == [1, 2]


def test_looking_at_a_view_does_not_renumber_the_studys_own_trials(tmp_path):
    study = new_study(tmp_path)
    for number in range(2):
        study.add_configuration(number, until=1)
        study.claim(study.lineages()[number].head)
        draw(study, number, "random")
        pause(study, number, 0.1)
    study.add_successor(study.lineages()[0], until=3)
    seen_from(study).get_trials(deepcopy=False)
    assert sorted(trial.number for trial in study.trials()) == [0, 1, 2]


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "qmc", "gp"])
def test_suggestions_are_a_function_of_seed_and_configuration(tmp_path, sampler):
    found = []
    for place, (seed, interrupted) in enumerate([(0, ()), (0, (2, 5, 11, 13)), (1, ())]):
        (tmp_path / str(place)).mkdir()
        study = new_study(tmp_path / str(place), configurations=CONFIGURATIONS)
        found.append(search(study, sampler, interrupted, seed))
    whole, interrupted, other_seed = found
    assert interrupted == whole
    assert other_seed != whole
    assert len(set(whole)) == CONFIGURATIONS


def test_the_trial_a_sampler_is_given_has_its_configurations_number(tmp_path):
    """By that number a sampler leaves it out of the trials that it learns from."""
    study = new_study(tmp_path)
    for number in range(2):
        study.add_configuration(number, until=1)
        study.claim(study.lineages()[number].head)
    study.end(study.lineages()[1].head._trial_id, TrialState.FAIL, "lost")
    study.add_successor(study.lineages()[1], until=1)
    head = study.lineages()[1].head
    assert head.number == 2
    assert numbered_trial(seen_from(study, 1), head._trial_id, 1).number == 1


def test_unknown_names_are_refused_with_those_there_are():
    check_sampler("tpe")
    with pytest.raises(UsageError, match=f"--sampler best: expected one of {', '.join(SAMPLERS)}"):
        check_sampler("best")
