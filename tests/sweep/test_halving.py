"""Which paused configuration goes on."""

from collections import Counter

import pytest

from pipeline.sweep.halving import bracket_of, last_promotion, promotion, rungs
from pipeline.sweep.lineage import lineages
from tests.sweep.trials import segment

RUNGS = [1, 3, 9]


def paused(values_at: dict[int, dict[int, float]]):
    """Configurations by number, each paused at the last epoch that it has a value of."""
    trials = [
        segment(n, n, "paused", epochs=max(values), until=max(values), values=values) for n, values in values_at.items()
    ]
    return lineages(trials)


def test_rungs_multiply_until_the_full_budget():
    assert rungs(min_epochs=1, max_epochs=27, eta=3) == [1, 3, 9, 27]
    assert rungs(min_epochs=2, max_epochs=9, eta=2) == [2, 4, 8, 9]
    assert rungs(min_epochs=5, max_epochs=5, eta=3) == [5]


def test_the_best_third_of_a_rung_goes_on():
    found = paused({0: {1: 0.5}, 1: {1: 0.2}, 2: {1: 0.9}})
    assert promotion(found, RUNGS, eta=3, direction="minimize") == (1, 3)
    assert promotion(found, RUNGS, eta=3, direction="maximize") == (2, 3)


@pytest.mark.parametrize("count", [1, 2])
def test_nobody_goes_on_while_a_third_of_the_rung_is_less_than_one(count):
    found = paused({n: {1: 0.1 * n} for n in range(count)})
    assert promotion(found, RUNGS, eta=3, direction="minimize") is None


def test_the_highest_rung_comes_first():
    found = paused(
        {
            0: {1: 0.1, 3: 0.10},
            1: {1: 0.2, 3: 0.05},
            2: {1: 0.3, 3: 0.30},
            **{n: {1: 0.01} for n in range(3, 12)},
        }
    )
    assert promotion(found, RUNGS, eta=3, direction="minimize") == (1, 9)


def test_ties_go_to_the_lower_number():
    found = paused({0: {1: 0.5}, 1: {1: 0.5}, 2: {1: 0.5}})
    assert promotion(found, RUNGS, eta=3, direction="minimize") == (0, 3)
    assert promotion(found, RUNGS, eta=3, direction="maximize") == (0, 3)


def test_who_was_promoted_already_still_counts_in_the_rung_it_left():
    trials = [
        segment(0, 0, "paused", epochs=1, values={1: 0.1}),
        segment(1, 1, "paused", epochs=1, values={1: 0.2}),
        segment(2, 2, "paused", epochs=1, values={1: 0.3}),
        segment(3, 0, None, parent=0, until=3, epochs=1, values={1: 0.1}),
    ]
    # One of three may go on, and one has.
    assert promotion(lineages(trials), RUNGS, eta=3, direction="minimize") is None


def test_what_falls_outside_today_is_promoted_when_the_rung_has_grown():
    values = {0: {1: 0.1, 3: 0.1}, 1: {1: 0.2}, 2: {1: 0.3}, 3: {1: 0.4}, 4: {1: 0.5}}
    assert promotion(paused(values), RUNGS, eta=3, direction="minimize") is None
    values[5] = {1: 0.6}
    assert promotion(paused(values), RUNGS, eta=3, direction="minimize") == (1, 3)


def test_a_failed_configuration_keeps_its_place_but_is_not_promoted():
    trials = [
        segment(0, 0, "paused", epochs=1, values={1: 0.1}),
        segment(1, 0, "diverged", parent=0, until=3, values={1: 0.1}),
        segment(2, 1, "paused", epochs=1, values={1: 0.2}),
        segment(3, 2, "paused", epochs=1, values={1: 0.3}),
    ]
    assert promotion(lineages(trials), RUNGS, eta=3, direction="minimize") is None


def test_the_last_promotion_takes_the_best_of_the_highest_rung_so_that_one_completes():
    found = paused({0: {1: 0.1}, 1: {1: 0.2, 3: 0.4}, 2: {1: 0.3, 3: 0.3}})
    assert last_promotion(found, RUNGS, direction="minimize") == (2, 9)
    assert last_promotion(found, RUNGS, direction="maximize") == (1, 9)


def test_there_is_no_last_promotion_once_one_has_completed():
    trials = [
        segment(0, 0, "complete", epochs=9, until=9, values={1: 0.1, 3: 0.1, 9: 0.1}),
        segment(1, 1, "paused", epochs=3, until=3, values={1: 0.2, 3: 0.2}),
    ]
    assert last_promotion(lineages(trials), RUNGS, direction="minimize") is None


def test_one_that_ended_early_has_completed_as_well():
    trials = [
        segment(0, 0, "complete", epochs=2, until=3, values={1: 0.1, 2: 0.2}),
        segment(1, 1, "paused", epochs=3, until=3, values={1: 0.2, 3: 0.2}),
    ]
    assert last_promotion(lineages(trials), RUNGS, direction="minimize") is None


def test_when_the_best_of_a_rung_failed_the_last_promotion_takes_the_next():
    trials = [
        segment(0, 0, "paused", epochs=3, until=3, values={1: 0.1, 3: 0.1}),
        segment(1, 0, "diverged", parent=0, until=9, values={1: 0.1, 3: 0.1}),
        segment(2, 1, "paused", epochs=3, until=3, values={1: 0.2, 3: 0.2}),
    ]
    assert last_promotion(lineages(trials), RUNGS, direction="minimize") == (1, 9)


def test_a_reopened_configuration_takes_no_part_in_the_promotion_of_others():
    trials = [
        segment(0, 0, "paused", epochs=1, values={1: 0.9}),
        segment(1, 1, "paused", epochs=1, values={1: 0.5}),
        segment(2, 2, "paused", epochs=1, values={1: 0.6}),
        segment(3, 0, "complete", parent=0, until=9, epochs=9, values={1: 0.9, 3: 0.1, 9: 0.1}, reopened=True),
    ]
    found = lineages(trials)
    assert promotion(found, RUNGS, eta=3, direction="minimize") == (1, 3)
    # And it is not the one that the study has trained to the end.
    assert last_promotion(found, RUNGS, direction="minimize") == (1, 3)


def test_nothing_is_promoted_in_an_empty_study():
    assert promotion({}, RUNGS, eta=3, direction="minimize") is None
    assert last_promotion({}, RUNGS, direction="minimize") is None


def test_configurations_are_dealt_to_brackets_in_hyperbands_proportions():
    """Li et al. 2018, table 1, whose R is 81 and eta 3: the numbers of configurations that the brackets begin with."""
    dealt = Counter(bracket_of(number, 5, eta=3) for number in range(81 + 34 + 15 + 8 + 5))
    assert dealt == {0: 81, 1: 34, 2: 15, 3: 8, 4: 5}
    # Whoever stops early has had about the same proportions.
    assert Counter(bracket_of(number, 4, eta=3) for number in range(24)) == {0: 13, 1: 6, 2: 3, 3: 2}


def test_a_configurations_bracket_follows_from_its_number_alone():
    assert [bracket_of(number, 3, eta=3) for number in range(9)] == [0, 1, 0, 2, 0, 1, 0, 0, 1]
    assert [bracket_of(number, 1, eta=3) for number in range(4)] == [0, 0, 0, 0]
