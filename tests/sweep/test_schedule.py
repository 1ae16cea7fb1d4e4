"""What is to be done next in a study."""

from collections import Counter

import pytest
from optuna.trial import TrialState

from pipeline.errors import UsageError
from pipeline.sweep.budget import grant
from pipeline.sweep.halving import bracket_of
from pipeline.sweep.lineage import duplicates
from pipeline.sweep.reopening import reopen
from pipeline.sweep.samplers import numbered_trial, sampling_view
from pipeline.sweep.schedule import first_goal, is_over, is_search_over, next_segment, open_segments
from pipeline.sweep.study import Study
from tests.sweep.trials import checkpoint_of, new_study, spec


def finish(study, lineage, value, *, ended="paused"):
    """Trains a claimed segment to its goal, as far as the study can tell."""
    head, until = lineage.head, lineage.until
    study.set(head._trial_id, "config", {"lr": value})
    name = checkpoint_of(head.number, until)
    best = {"epoch": until, "value": value, "checkpoint": name}
    study.set(head._trial_id, "progress", {"checkpoint": name, "epochs": until, "best": best})
    study.report(head._trial_id, until, value)
    if until >= (lineage.extended or study.spec.max_epochs):
        study.end(head._trial_id, TrialState.COMPLETE, "complete", value)
    else:
        study.end(head._trial_id, TrialState.PRUNED, ended)


def stop_at(study, lineage, epoch):
    """A claimed segment stops before its goal, with a checkpoint."""
    head = lineage.head
    study.set(head._trial_id, "config", {"lr": 0.5})
    name = checkpoint_of(head.number, epoch)
    study.set(head._trial_id, "progress", {"checkpoint": name, "epochs": epoch, "best": None})
    study.end(head._trial_id, TrialState.FAIL, "preempted")


def run_through(study, values, log=None):
    """One worker, from where the study stands to its end; returns (configuration, until) in order."""
    log = [] if log is None else log
    while (found := next_segment(study)) not in ("wait", "done"):
        log.append((found.number, found.until))
        finish(study, found, values[found.number])
    assert found == "done"
    return log


VALUES = [0.9, 0.2, 0.5, 0.7, 0.1, 0.8, 0.3, 0.6, 0.4]


class Counting:
    """A storage whose calls are counted by their names."""

    def __init__(self, storage, calls):
        self._storage, self._calls = storage, calls

    def __getattr__(self, name):
        self._calls[name] += 1
        return getattr(self._storage, name)


def test_a_claim_reads_all_trials_once(tmp_path):
    calls = Counter()
    study = new_study(tmp_path).through(lambda storage: Counting(storage, calls))
    study.add_configuration(0, until=1)
    for number in (0, 1):  # what waits is claimed; what is not there yet is created first
        calls.clear()
        assert next_segment(study).number == number
        assert calls["get_all_trials"] == 1


class Slower:
    """A storage that creates the trials of another process before its own next one."""

    def __init__(self, storage, others):
        self._storage, self._others = storage, others

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def create_new_trial(self, study_id, template):
        while self._others:
            self._others.pop()()
        return self._storage.create_new_trial(study_id, template)


@pytest.mark.parametrize("is_claimed", [False, True])
def test_who_creates_a_segment_later_than_another_does_not_claim_its_own(tmp_path, is_claimed):
    other = new_study(tmp_path)
    finish(other, next_segment(other), 0.5)
    others = [lambda: other.claim(other.trials()[-1])] if is_claimed else []
    others.append(lambda: other.add_configuration(1, until=1))
    slower = Study.load(other.name, other.url).through(lambda storage: Slower(storage, others))
    found = next_segment(slower)
    assert (found.number, found.head.number) == (2, 3)
    drawing = numbered_trial(sampling_view(slower, slower.spec, found.number), found.head._trial_id, found.number)
    assert 0 <= drawing.suggest_float("lr", 0, 1) <= 1
    assert [trial.number for trial in duplicates(slower.trials())] == [2]
    assert next_segment(other).number == (3 if is_claimed else 1)
    assert [trial.user_attrs.get("ended") for trial in slower.trials()[:3]] == ["paused", None, "duplicate"]


def test_what_is_claimed_is_returned_as_it_is_now(tmp_path):
    study = new_study(tmp_path)
    found = next_segment(study)
    assert found.head.state is TrialState.RUNNING
    assert "worker" in found.head.user_attrs
    assert [one.number for one in found.segments] == [one.number for one in study.lineages()[0].segments]


def test_one_worker_promotes_whenever_a_rung_has_grown_and_trains_one_to_the_full(tmp_path):
    study = new_study(tmp_path)
    order = run_through(study, VALUES)
    assert order == [
        *[(0, 1), (1, 1), (2, 1), (1, 3)],
        *[(3, 1), (4, 1), (4, 3)],
        *[(5, 1), (6, 1), (7, 1), (8, 1), (6, 3), (4, 9)],
    ]
    assert is_over(study)


def test_without_a_full_third_anywhere_the_best_still_trains_to_the_end(tmp_path):
    study = new_study(tmp_path, configurations=2)
    assert run_through(study, VALUES) == [(0, 1), (1, 1), (1, 3), (1, 9)]


def test_without_halving_every_configuration_trains_to_the_full_at_once(tmp_path):
    study = new_study(tmp_path, configurations=2, pruner="none")
    assert run_through(study, VALUES) == [(0, 9), (1, 9)]
    assert first_goal(spec(pruner="median"), 0) == 9
    assert first_goal(spec(pruner="halving", min_epochs=2), 0) == 2


def test_a_budget_of_one_rung_needs_no_promotion(tmp_path):
    study = new_study(tmp_path, configurations=2, max_epochs=1)
    assert run_through(study, VALUES) == [(0, 1), (1, 1)]


def test_what_was_interrupted_comes_first_and_changes_nothing_else(tmp_path):
    study = new_study(tmp_path)
    order = []
    for _ in range(5):
        found = next_segment(study)
        order.append((found.number, found.until))
        finish(study, found, VALUES[found.number])
    lost = next_segment(study)
    study.end(lost.head._trial_id, TrialState.FAIL, "lost")
    again = next_segment(study)
    assert (again.number, again.until) == (lost.number, lost.until)
    assert again.head.user_attrs["parent"] == lost.head.number
    order.append((again.number, again.until))
    finish(study, again, VALUES[again.number])
    (tmp_path / "whole").mkdir()
    assert run_through(study, VALUES, order) == run_through(new_study(tmp_path / "whole"), VALUES)


def test_a_claimed_segment_makes_others_wait_and_its_end_makes_them_done(tmp_path):
    study = new_study(tmp_path, configurations=1)
    found = next_segment(study)
    assert next_segment(study) == "wait"
    assert not is_over(study)
    finish(study, found, 0.5)
    found = next_segment(study)
    finish(study, found, 0.5)
    finish(study, next_segment(study), 0.5)
    assert next_segment(study) == "done"
    assert is_over(study)


def test_a_configuration_that_fails_for_good_is_given_up_and_the_study_goes_on(tmp_path):
    study = new_study(tmp_path, configurations=2)
    for _ in range(2):
        found = next_segment(study)
        assert found.number == 0
        study.end(found.head._trial_id, TrialState.FAIL, "hang")
    assert run_through(study, VALUES) == [(1, 1), (1, 3), (1, 9)]
    assert study.lineages()[0].failed()


def test_a_study_in_which_all_fail_ends(tmp_path):
    study = new_study(tmp_path, configurations=2)
    for _ in range(2):
        found = next_segment(study)
        study.end(found.head._trial_id, TrialState.FAIL, "diverged")
    assert next_segment(study) == "done"
    assert is_over(study)


def test_reopening_takes_a_pruned_configuration_to_the_full_and_no_other(tmp_path):
    study = new_study(tmp_path)
    run_through(study, VALUES)
    before = {n: [s.number for s in one.segments] for n, one in study.lineages().items()}
    assert reopen(study, (0,))
    assert reopen(study, (0,))  # repeated, it does nothing more
    assert not is_over(study)
    assert is_search_over(study)  # nothing changes for the others
    found = next_segment(study, only=(0,))
    assert (found.number, found.until) == (0, 9)
    assert found.head.user_attrs["reopened"]
    finish(study, found, 0.01)
    assert next_segment(study, only=(0,)) == "done"
    assert is_over(study)
    after = {n: [s.number for s in one.segments] for n, one in study.lineages().items()}
    assert {n: s for n, s in after.items() if n != 0} == {n: s for n, s in before.items() if n != 0}
    assert not reopen(study, (0,))


def test_an_interrupted_reopening_is_continued_as_one(tmp_path):
    study = new_study(tmp_path)
    run_through(study, VALUES)
    assert reopen(study, (0,))
    found = next_segment(study, only=(0,))
    study.end(found.head._trial_id, TrialState.FAIL, "preempted")
    assert reopen(study, (0,))
    again = next_segment(study, only=(0,))
    assert again.head.user_attrs["parent"] == found.head.number
    assert again.head.user_attrs["reopened"]
    assert again.until == 9


def test_only_the_reopened_configuration_is_worked_on_while_others_are_left_to_do(tmp_path):
    study = new_study(tmp_path)
    for _ in range(2):
        finish(study, next_segment(study), 0.5)
    assert reopen(study, (0,))
    finish(study, next_segment(study, only=(0,)), 0.01)
    assert next_segment(study, only=(0,)) == "done"
    assert sorted(study.lineages()) == [0, 1]


def test_a_configuration_that_failed_is_reopened_from_its_last_checkpoint(tmp_path):
    study = new_study(tmp_path, configurations=1)
    finish(study, next_segment(study), 0.5)
    found = next_segment(study)
    study.end(found.head._trial_id, TrialState.FAIL, "diverged")
    assert reopen(study, (0,))
    again = next_segment(study, only=(0,))
    assert again.head.user_attrs["start"] == checkpoint_of(0, 1)


def test_reopening_what_is_not_there_or_is_being_trained_is_refused(tmp_path):
    study = new_study(tmp_path)
    next_segment(study)
    with pytest.raises(UsageError, match="--configuration 5: study 's' has no such configuration"):
        reopen(study, (5,))
    with pytest.raises(UsageError, match="--configuration 0: it is being trained"):
        reopen(study, (0,))


def test_hyperband_starts_each_bracket_at_its_rung_and_promotes_inside_it_alone(tmp_path):
    study = new_study(tmp_path, configurations=9, pruner="hyperband")
    assert [bracket_of(number, 3, eta=3) for number in range(9)] == [0, 1, 0, 2, 0, 1, 0, 0, 1]
    assert [first_goal(study.spec, number) for number in range(9)] == [1, 3, 1, 9, 1, 3, 1, 1, 3]
    order = run_through(study, VALUES)
    assert order == [
        *[(0, 1), (1, 3), (2, 1), (3, 9), (4, 1)],
        (4, 3),  # the best of 0, 2 and 4
        *[(5, 3), (6, 1), (7, 1), (8, 3)],
        (1, 9),  # the best of 1, 5 and 8, although 4 was better at the same epoch
    ]
    assert is_over(study)


def test_an_interrupted_hyperband_goes_on_as_if_it_had_not_been(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = run_through(new_study(tmp_path / "whole", pruner="hyperband"), VALUES)
    study = new_study(tmp_path, pruner="hyperband")
    order = []
    while (found := next_segment(study)) != "done":
        study.end(found.head._trial_id, TrialState.FAIL, "preempted")
        found = next_segment(study)
        order.append((found.number, found.until))
        finish(study, found, VALUES[found.number])
    assert order == whole


def test_a_study_that_grows_goes_on_where_it_ended(tmp_path):
    study = new_study(tmp_path, configurations=3)
    order = run_through(study, VALUES)
    assert is_over(study)
    grown = Study.open("s", study.url, spec(configurations=9), accept_change=False)
    assert not is_over(grown)
    # 1 had been taken to the end for want of a full rung; all the rest is as planned.
    assert run_through(grown, VALUES, order) == [
        *[(0, 1), (1, 1), (2, 1), (1, 3), (1, 9)],
        *[(3, 1), (4, 1), (4, 3), (5, 1), (6, 1), (7, 1), (8, 1), (6, 3), (4, 9)],
    ]


def test_given_points_are_the_first_configurations_and_outlive_a_kill_while_they_are_drawn(tmp_path):
    study = new_study(tmp_path, configurations=2, points=[{"lr": 0.5}])
    found = next_segment(study)
    assert found.head.system_attrs == {"fixed_params": {"lr": 0.5}}
    study.end(found.head._trial_id, TrialState.FAIL, "preempted")  # before it has said what was drawn
    found = next_segment(study)
    assert found.head.system_attrs == {"fixed_params": {"lr": 0.5}}
    finish(study, found, 0.5)
    assert next_segment(study).head.system_attrs == {}


def test_all_configurations_together_are_granted_no_more_epochs_than_the_budget(tmp_path):
    study = new_study(tmp_path, configurations=2, pruner="none")
    found = next_segment(study, max_total_epochs=12)
    assert found.head.user_attrs["granted"] == 9
    # The other gets what is left beside what is granted, and who comes then waits.
    other = next_segment(study, max_total_epochs=12)
    assert other.head.user_attrs["granted"] == 3
    assert next_segment(study, max_total_epochs=12) == "wait"
    finish(study, found, 0.5)
    stop_at(study, other, 3)
    assert next_segment(study, max_total_epochs=12) == "done"
    assert not is_over(study)
    # With more it goes on to where it was to go.
    again = next_segment(study, max_total_epochs=100)
    assert (again.number, again.until, again.head.user_attrs["granted"]) == (1, 9, 9)
    stop_at(study, again, 5)
    assert next_segment(study).until == 9


def test_of_two_that_claim_at_once_neither_takes_what_the_other_may_want(tmp_path):
    study = new_study(tmp_path, configurations=2, pruner="none")
    for number in range(2):
        study.add_configuration(number, until=9)
        assert study.claim(study.lineages()[number].head)
    assert not grant(study, 1, 9)  # 0 has not been told yet, and may want them all
    assert study.lineages()[1].ended == "preempted"
    assert grant(study, 0, 9)
    assert study.lineages()[0].head.user_attrs["granted"] == 9
    assert next_segment(study, max_total_epochs=9) == "wait"


def test_a_trial_that_nobody_claims_holds_no_epochs(tmp_path):
    study = new_study(tmp_path, configurations=2, pruner="none")
    study.add_configuration(0, until=9)  # by a command that was killed
    study.add_configuration(1, until=9)
    assert next_segment(study, only=(1,), max_total_epochs=9).head.user_attrs["granted"] == 9


def test_how_much_is_open_is_said_before_and_while_it_is_claimed(tmp_path):
    study = new_study(tmp_path, configurations=3)
    counts = []
    while (before := open_segments(study)) is not None:
        found = next_segment(study)
        counts.append((before, open_segments(study)))
        finish(study, found, VALUES[found.number])
    assert next_segment(study) == "done"
    # New configurations, of which one is claimed each time; then the best of three, and it alone to the end.
    assert counts == [(3, 2), (2, 1), (1, 0), (1, 0), (1, 0)]


def test_what_broke_off_is_open_until_it_is_claimed_and_only_if_it_was_asked_for(tmp_path):
    study = new_study(tmp_path, configurations=2)
    for claimed in [next_segment(study), next_segment(study)]:
        stop_at(study, claimed, 1)
    assert open_segments(study) == 2
    assert open_segments(study, only=[1]) == 1
    assert open_segments(study, only=[7]) is None
    assert next_segment(study).number == 0
    assert (open_segments(study), open_segments(study, only=[0])) == (1, 0)


def test_nothing_is_open_when_the_budget_is_spent(tmp_path):
    study = new_study(tmp_path, configurations=3)
    finish(study, next_segment(study), 0.5)
    assert open_segments(study, max_total_epochs=2) == 2
    assert open_segments(study, max_total_epochs=1) is None
    next_segment(study)
    assert open_segments(study, max_total_epochs=1) == 0, "somebody is still at it"
