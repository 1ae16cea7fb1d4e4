"""More epochs than a study gives: which configurations get them, and that it is decided once."""

import pytest
from optuna.trial import TrialState

from pipeline.errors import UsageError
from pipeline.sweep.reopening import reopen, reopen_best
from pipeline.sweep.schedule import is_over, is_search_over, next_segment
from tests.sweep.test_schedule import VALUES, finish, run_through
from tests.sweep.trials import new_study


@pytest.fixture
def study(tmp_path):
    """A finished one of three configurations, of which 1 is the best and 2 the second."""
    study = new_study(tmp_path, configurations=3, pruner="none")
    run_through(study, VALUES)
    return study


def extend(study, top=2, max_epochs=20, schedule=None):
    return reopen_best(study, top, max_epochs=max_epochs, schedule=schedule)


def test_the_best_go_on_to_the_new_budget_and_nobody_else(study):
    assert extend(study, schedule="keep") == ((1, 2), True)
    for number in (1, 2):
        found = next_segment(study, only=(1, 2))
        assert (found.number, found.until, found.extended, found.schedule) == (number, 20, 20, "keep")
        assert found.head.user_attrs["start"] == f"s0-e00009-b000000-t{number:06d}"
        finish(study, found, VALUES[number])
    assert next_segment(study, only=(1, 2)) == "done"
    assert [one.epochs for one in study.lineages().values()] == [9, 20, 20]
    assert is_over(study)
    assert extend(study, schedule="keep") == ((1, 2), False)


def test_the_same_again_means_the_same_ones_whatever_they_have_come_to(study):
    assert extend(study, top=1) == ((1,), True)
    found = next_segment(study, only=(1,))
    study.end(found.head._trial_id, TrialState.FAIL, "lost")
    assert reopen(study, (2,), max_epochs=20)
    second = next_segment(study, only=(2,))
    finish(study, second, 0.001)  # now 2 is the best
    assert extend(study, top=1) == ((1,), True)
    again = next_segment(study, only=(1,))
    assert (again.number, again.until, again.extended) == (1, 20, 20)
    assert again.head.user_attrs["parent"] == found.head.number
    assert extend(study, top=1, max_epochs=30)[0] == (2,)


def test_whoever_continues_the_study_continues_the_extension(study):
    extend(study)
    assert not is_over(study)
    assert is_search_over(study)
    assert next_segment(study).until == 20


def test_a_longer_extension_follows_a_shorter_one(study):
    extend(study, top=1, schedule="constant")
    finish(study, next_segment(study), VALUES[1])
    assert not reopen(study, (1,), max_epochs=15)
    assert reopen(study, (1,), max_epochs=30)
    found = next_segment(study)
    assert (found.until, found.extended, found.schedule) == (30, 30, None)


def test_what_cannot_be_extended_is_refused_before_anything_is_changed(study, tmp_path):
    with pytest.raises(UsageError, match="--top 4: study 's' has only 3 configurations with a result"):
        extend(study, top=4)
    with pytest.raises(UsageError, match="--max-epochs 9: expected more than the 9 epochs that the study gives"):
        extend(study, max_epochs=9)
    assert "chosen" not in study.attrs
    extend(study, schedule="keep")
    with pytest.raises(UsageError, match="#01 is being extended to 20 with --schedule keep; say the same"):
        extend(study, schedule="constant")
    (tmp_path / "new").mkdir()
    unfinished = new_study(tmp_path / "new", configurations=3)
    finish(unfinished, next_segment(unfinished), 0.5)
    with pytest.raises(UsageError, match="are not known before it is done; continue it first, by `resume --study s`"):
        extend(unfinished, top=1)


def test_the_best_that_were_paused_get_the_whole_budget(tmp_path):
    study = new_study(tmp_path, configurations=9)
    values = dict(enumerate((0.5, 0.1, 0.3, 0.9, 0.2, 0.8, 0.6, 0.4, 0.7)))
    run_through(study, values)
    paused = sorted((one for one in study.lineages().values() if one.epochs < 9), key=lambda one: values[one.number])
    best = tuple(one.number for one in paused[:2])
    before = {number: study.lineages()[number].progress["checkpoint"] for number in best}
    with pytest.raises(UsageError, match=f"has only {len(paused)} configurations that have not had all epochs"):
        reopen_best(study, len(paused) + 1)
    assert reopen_best(study, 2) == (best, True)
    for number in sorted(best):
        found = next_segment(study, only=best)
        assert (found.number, found.until, found.reopened) == (number, 9, True)
        assert found.head.user_attrs["start"] == before[number]
        finish(study, found, values[number])
    assert next_segment(study, only=best) == "done"
    assert reopen_best(study, 2) == (best, False)
