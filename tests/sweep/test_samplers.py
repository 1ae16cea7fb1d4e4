"""What samplers see, and that their draws do not depend on how often others were interrupted."""

import math

import pytest
from optuna.trial import TrialState

from pipeline.errors import UsageError
from pipeline.sweep.cmaes import GENERATION
from pipeline.sweep.samplers import SAMPLERS, check_sampler, numbered_trial, sampling_view
from tests.sweep.trials import checkpoint_of, new_study, spec

CONFIGURATIONS = 16  # TPE draws at random until it has ten
FEW = {"gp": 11}  # and so does GP, which takes its time


def seen_from(study, configuration=0, sampler="tpe", seed=0):
    return sampling_view(study, spec(sampler=sampler, seed=seed), configuration)


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
    for number in range(FEW.get(sampler, CONFIGURATIONS)):
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
    for place, (seed, interrupted) in enumerate([(0, ()), (0, (2, 5, 10, 13)), (1, ())]):
        (tmp_path / str(place)).mkdir()
        study = new_study(tmp_path / str(place), configurations=CONFIGURATIONS)
        found.append(search(study, sampler, interrupted, seed))
    whole, interrupted, other_seed = found
    assert interrupted == whole
    assert other_seed != whole
    assert len(set(whole)) == len(whole)  # no point is drawn twice


@pytest.mark.parametrize("sampler", ["cmaes", "gp"])
def test_samplers_that_learn_from_values_learn_from_what_is_paused(tmp_path, sampler):
    """Optuna shows them complete trials alone, and halving completes few."""
    study = new_study(tmp_path, configurations=CONFIGURATIONS)
    search(study, sampler)
    heads = [lineage.head for lineage in study.lineages().values()]
    if sampler == "gp":
        assert [n for n, head in enumerate(heads) if "gp:relative_params:0" in head.system_attrs] == [10]
    else:
        # The first says what the search space is; a generation for two parameters has six.
        generations = [head.system_attrs.get(GENERATION) for head in heads]
        assert generations == [None, *[0] * 6, *[1] * 6, *[2] * 3]


def test_cmaes_does_not_fall_back_when_who_closed_a_generation_is_promoted_or_fails(tmp_path):
    study = new_study(tmp_path, configurations=CONFIGURATIONS)
    search(study, "cmaes")
    for number in (7, 13):  # the first of a generation
        study.add_successor(study.lineages()[number], until=3)
        assert study.claim(study.lineages()[number].head)
    study.end(study.lineages()[13].head._trial_id, TrialState.FAIL, "hang")
    study.add_configuration(CONFIGURATIONS, until=1)
    assert study.claim(study.lineages()[CONFIGURATIONS].head)
    draw(study, CONFIGURATIONS, "cmaes")
    assert study.lineages()[CONFIGURATIONS].head.system_attrs[GENERATION] == 1  # 7 is being trained: five are there


def test_who_diverged_is_the_worst_of_all_to_samplers_that_learn_from_values(tmp_path):
    study = new_study(tmp_path)
    for number, value in enumerate([0.3, 0.7, None]):
        study.add_configuration(number, until=1)
        assert study.claim(study.lineages()[number].head)
        draw(study, number, "random")
        if value is None:
            study.end(study.lineages()[number].head._trial_id, TrialState.FAIL, "diverged")
        else:
            pause(study, number, value)
    shown = seen_from(study, 3, "gp").get_trials(states=(TrialState.COMPLETE,))
    assert [trial.value for trial in shown] == [0.3, 0.7, 0.7]
    # TPE is told of everything: for how long it was trained, and that it is no number.
    shown = seen_from(study, 3, "tpe").get_trials(states=(TrialState.PRUNED,))
    assert [trial.number for trial in shown] == [0, 1, 2]
    assert math.isnan(shown[2].intermediate_values[1])


def test_what_is_given_is_taken_and_the_rest_is_drawn(tmp_path):
    study = new_study(tmp_path, configurations=2)
    study.add_configuration(0, until=1, point={"width": 77})
    study.claim(study.lineages()[0].head)
    lost = draw(study, 0, "tpe", kept=False)
    lose(study, 0)
    assert draw(study, 0, "tpe") == lost  # killed while it was drawn, it is the same
    assert lost[1] == 77
    other = new_study(tmp_path, f"sqlite:///{tmp_path / 'other.db'}")
    other.add_configuration(0, until=1)
    other.claim(other.lineages()[0].head)
    assert draw(other, 0, "tpe")[0] == lost[0]


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
