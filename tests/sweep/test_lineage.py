"""What the trials of a study say about its configurations."""

import random

import pytest

from pipeline.sweep.lineage import MAX_RETRIES, Lineages, duplicates, failing_alike, lineages
from tests.sweep.trials import checkpoint_of, segment


def numbers(trials):
    return {n: [s.number for s in lineage.segments] for n, lineage in lineages(trials).items()}


def test_segments_follow_each_other_by_their_parents():
    trials = [
        segment(0, 0, "paused", epochs=1),
        segment(1, 1, "lost"),
        segment(2, 1, "paused", parent=1, epochs=1),
        segment(3, 0, None, parent=0, epochs=1, start=checkpoint_of(0, 1), until=3),
    ]
    assert numbers(trials) == {0: [0, 3], 1: [1, 2]}
    assert lineages(trials)[0].ended is None
    assert lineages(trials)[0].until == 3
    assert lineages(trials)[1].ended == "paused"
    assert duplicates(trials) == []


def test_of_two_successors_the_lowest_number_wins_and_the_other_is_closed():
    first = segment(0, 0, "paused", epochs=1)
    lower = segment(1, 0, None, parent=0, until=3)
    higher = segment(2, 0, "waiting", parent=0, until=3)
    for trials in ([first, lower, higher], [higher, lower, first]):
        assert numbers(trials) == {0: [0, 1]}
        assert [trial.number for trial in duplicates(trials)] == [2]


def test_a_successor_that_was_created_late_does_not_return_after_the_lineage_went_on():
    trials = [
        segment(0, 0, "lost"),
        segment(1, 0, "paused", parent=0, epochs=1),
        segment(2, 0, None, parent=1, until=3),
        segment(3, 0, "waiting", parent=0),  # by a worker that had read the study before trial 1
    ]
    assert numbers(trials) == {0: [0, 1, 2]}
    assert [trial.number for trial in duplicates(trials)] == [3]


def test_of_two_that_create_the_same_configuration_the_lowest_number_wins():
    trials = [segment(0, 0, None), segment(1, 0, None), segment(2, 1, "waiting")]
    assert numbers(trials) == {0: [0], 1: [2]}
    assert [trial.number for trial in duplicates(trials)] == [1]


def test_a_successor_of_a_duplicate_belongs_to_no_lineage():
    trials = [
        segment(0, 0, "paused", epochs=1),
        segment(1, 0, "paused", parent=0, epochs=3, until=3),
        segment(2, 0, "lost", parent=0),
        segment(3, 0, "waiting", parent=2),
    ]
    assert numbers(trials) == {0: [0, 1]}
    assert [trial.number for trial in duplicates(trials)] == [3]


def test_trials_that_others_put_into_the_study_are_left_alone():
    foreign = segment(0, 0, None)
    del foreign.user_attrs["configuration"]
    assert lineages([foreign]) == {}


def chain(*ends: str, epochs: tuple[int, ...] = ()):
    """Segments of one configuration in a row, each with the epochs that it had committed at its end."""
    trials, start = [], None
    for number, ended in enumerate(ends):
        own = epochs[number] if number < len(epochs) else 0
        parent = number - 1 if number else None
        trials.append(segment(number, 0, ended, parent=parent, start=start, epochs=own, until=9))
        start = trials[-1].user_attrs["progress"]["checkpoint"]
    return lineages(trials)[0]


@pytest.mark.parametrize(
    ("ended", "allowed"),
    [("lost", 3), ("bug", 3), ("out_of_memory", 1), ("hang", 1), ("diverged", 0)],
)
def test_a_configuration_is_tried_again_only_so_often_without_a_new_checkpoint(ended, allowed):
    for times in range(1, allowed + 1):
        assert chain(*[ended] * times).may_continue()
        assert not chain(*[ended] * times).failed()
    assert not chain(*[ended] * (allowed + 1)).may_continue()
    assert chain(*[ended] * (allowed + 1)).failed()


def test_a_preemption_is_never_held_against_a_configuration():
    assert chain(*["preempted"] * 50).may_continue()


def test_preemptions_in_between_neither_count_nor_absolve():
    assert chain("lost", "preempted", "lost", "preempted", "lost").may_continue()
    assert not chain("lost", "lost", "preempted", "lost", "lost").may_continue()
    assert not chain("hang", "preempted", "hang").may_continue()


def test_a_new_checkpoint_gives_all_attempts_back():
    assert chain("lost", "lost", "lost", "lost", epochs=(0, 0, 0, 1)).may_continue()
    assert chain("hang", "hang", epochs=(1, 2)).may_continue()
    assert not chain("hang", "hang", "hang", epochs=(1, 2)).may_continue()


def bugs(*positions: int, place: str = "x.py:1", code: str = "c", fresh: int | None = None):
    """A configuration whose segments raised at these batches."""
    trials = [
        segment(
            n,
            0,
            "bug",
            parent=n - 1 if n else None,
            bug={"type": "ValueError", "place": place, "position": [0, 0, position], "code": code},
            **({"fresh": True} if n == fresh else {}),
        )
        for n, position in enumerate(positions)
    ]
    return lineages(trials)[0]


def test_the_same_exception_at_the_same_position_twice_is_final():
    assert bugs(3).may_continue()
    assert not bugs(3, 3).may_continue()
    assert bugs(3, 4).may_continue()
    assert not bugs(3, 4, 3).may_continue()
    assert not bugs(1, 2, 3, 4).may_continue(), "there is an end to different ones as well"


def test_what_was_raised_before_a_reopening_is_not_held_against_it():
    assert bugs(3, 3, fresh=1).may_continue()
    assert not bugs(3, 3, 3, fresh=1).may_continue()


def test_a_study_may_allow_fewer_retries():
    trials = [segment(0, 0, "lost"), segment(1, 0, "lost", parent=0)]
    assert lineages(trials, 1)[0].failed()
    assert lineages(trials, 2)[0].may_continue()


def test_the_first_three_that_fail_alike_are_enough():
    def study(*places: str, code: str = "c"):
        trials = []
        for n, place in enumerate(places):
            raised = {"type": "ValueError", "place": place, "position": None, "code": code}
            trials.append(segment(2 * n, n, "bug", bug=raised))
            trials.append(segment(2 * n + 1, n, "bug", bug=raised, parent=2 * n))
        return lineages(trials)

    assert failing_alike(study("x.py:1", "x.py:1", "x.py:1"), "c")
    assert not failing_alike(study("x.py:1", "x.py:1"), "c")
    assert not failing_alike(study("x.py:1", "x.py:1", "x.py:2"), "c")
    assert not failing_alike(study("x.py:1", "x.py:1", "x.py:1"), "another code")
    assert failing_alike(study("x.py:1", "x.py:1", "x.py:1", "x.py:2"), "c")
    successful = study("x.py:1", "x.py:1", "x.py:1") | {3: lineages([segment(6, 3, "paused", epochs=1)])[3]}
    assert not failing_alike(successful, "c")


def test_a_pause_gives_all_attempts_back():
    assert chain("lost", "lost", "paused", "lost", "lost", "lost", epochs=(0, 0, 1)).may_continue()


def test_what_still_runs_has_not_failed_and_needs_no_successor():
    running = lineages([segment(0, 0, None)])[0]
    assert running.ended is None
    assert not running.may_continue()
    assert not running.failed()


def test_a_trial_failed_by_something_else_counts_as_lost():
    trial = segment(0, 0, "bug")
    del trial.user_attrs["ended"]
    assert lineages([trial])[0].ended == "lost"
    assert lineages([trial])[0].may_continue()


@pytest.mark.parametrize(
    ("state", "attribute", "expected"),
    [("lost", "paused", "lost"), ("lost", "complete", "lost"), ("complete", "lost", "complete")],
)
def test_when_two_ended_a_trial_at_once_its_state_decides(state, attribute, expected):
    """`ended` and the state are two writes; another's `ended` may come between them."""
    trial = segment(0, 0, state)
    trial.user_attrs["ended"] = attribute
    lineage = lineages([trial])[0]
    assert lineage.ended == expected
    assert lineage.may_continue() == (expected == "lost")


def test_when_two_ended_a_paused_trial_at_once_it_is_not_failed():
    trial = segment(0, 0, "paused", epochs=1)
    trial.user_attrs["ended"] = "lost"
    assert lineages([trial])[0].ended == "paused"


def test_a_rung_is_reached_by_the_search_not_by_hand():
    trials = [
        segment(0, 0, "paused", epochs=1, values={1: 0.9}),
        segment(1, 0, "complete", parent=0, epochs=9, until=9, values={1: 0.9, 3: 0.1, 9: 0.1}, reopened=True),
    ]
    lineage = lineages(trials)[0]
    assert lineage.rung_value(1) == 0.9
    assert lineage.rung_value(3) is None
    assert lineage.rung_value(9) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_study_that_grows_is_read_as_if_it_were_read_whole(seed):
    """Workers claim, end and duplicate segments in any order; what has ended is looked at once."""
    chance, index, trials = random.Random(seed), Lineages(MAX_RETRIES), []
    for number in range(40):
        configuration = chance.randrange(5)
        known = lineages(trials).get(configuration)
        parents = [None, *([segment.number for segment in known.segments] if known else [])]
        parent = parents[-1] if chance.random() < 0.8 else chance.choice(parents)  # the latter is a duplicate
        trials.append(segment(number, configuration, None, parent=parent))
        for place, trial in enumerate(trials):
            if not trial.state.is_finished() and chance.random() < 0.3:
                attrs = trial.user_attrs
                trials[place] = segment(place, attrs["configuration"], "paused", parent=attrs["parent"])
        found = index.of(trials)
        assert found == lineages(trials)
        assert list(found) == sorted(found)
    assert index._count > 20
