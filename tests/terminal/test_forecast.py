"""What is said of how much is left of a study, and how long that takes."""

from datetime import datetime, timedelta

import pytest
from optuna.trial import FrozenTrial

from pipeline.sweep.lineage import lineages
from pipeline.terminal.forecast import epochs_left, forecast, seconds_per_epoch
from tests.sweep.trials import checkpoint_of, segment, spec

BEGAN = datetime.fromisoformat("2026-03-01T12:00:00")
WORKERS = [{"host": "a", "pid": number} for number in range(3)]


def ran(trial: FrozenTrial, began: int, over: int | None) -> FrozenTrial:
    trial.datetime_start = BEGAN + timedelta(seconds=began)
    trial.datetime_complete = None if over is None else BEGAN + timedelta(seconds=over)
    return trial


def at(seconds: int) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"pruner": "none"}, 81),
        ({"configurations": 9}, 9 + 3 * 2 + 1 * 6),  # all of them to epoch 1, three to 3, one to 9
        ({"configurations": 2}, 2 + 8),  # the best goes on to the end, whatever its rung's third is
        ({"configurations": 17, "pruner": "hyperband"}, (9 + 3 * 2 + 6) + (5 * 3 + 6) + 3 * 9),
        ({"pruner": "median"}, None),
    ],
)
def test_what_is_left_before_anything_is_trained(changes, epochs):
    assert epochs_left(spec(**changes), {}) == epochs


def test_what_is_left_of_halving_shrinks_by_what_was_trained_and_grows_by_what_was_promoted_too_soon():
    first = [segment(n, n, "paused", epochs=1, until=1) for n in range(4)]
    assert epochs_left(spec(), lineages(first)) == 5 + 6 + 6
    second = segment(4, 3, "paused", parent=3, start=checkpoint_of(3, 1), epochs=3, until=3)
    assert epochs_left(spec(), lineages([*first, second])) == 5 + 4 + 6


def test_of_another_rule_nothing_is_said_before_three_have_ended_and_then_the_rest_is_like_them():
    ended = [segment(n, n, "pruned", epochs=epochs, until=9) for n, epochs in enumerate((1, 2, 3))]
    running = segment(3, 3, None, until=9)
    assert epochs_left(spec(pruner="median"), lineages([*ended[:2], running])) is None
    assert epochs_left(spec(pruner="median"), lineages([*ended, running])) == 2 + 5 * 2


def test_an_epochs_time_is_known_by_segments_that_came_to_their_end_and_by_the_reports_of_others():
    paused = ran(segment(0, 0, "paused", epochs=2), 0, 20)
    assert seconds_per_epoch(lineages([paused]).values()) is None, "two epochs are no evidence"
    lost = ran(segment(1, 1, "lost", epochs=4), 0, 100_000)  # somebody came back the next day
    progress = lost.user_attrs["progress"]
    lost.user_attrs = {**lost.user_attrs, "progress": {**progress, "seconds": 16.0}}
    assert seconds_per_epoch(lineages([paused, lost]).values()) == (20 + 16) / 6


def test_the_time_left_is_shared_by_those_who_work_but_never_shorter_than_what_one_has_to_do_alone():
    ended = [
        ran(segment(n, n, "complete", epochs=9, until=9, worker=WORKERS[n]), 0, 90) for n in range(2)
    ]  # ten seconds an epoch
    running = [ran(segment(n, n, None, until=9, worker=WORKERS[n - 2]), 90, None) for n in (2, 3)]
    plan = spec(pruner="none", configurations=6)
    found = forecast(plan, lineages([*ended, *running]), at(100))
    assert found is not None
    assert (found.epochs, found.seconds) == (36, 180)
    found = forecast(plan, lineages([*ended, *running]), at(100), max_total_epochs=20)
    assert found is not None
    assert (found.epochs, found.seconds) == (2, 20)
    found = forecast(plan, lineages([*ended, *running]), at(100), only=[2])
    assert found is not None
    assert (found.epochs, found.seconds) == (9, 90)
    found = forecast(plan, lineages(ended), at(100))
    assert found is not None
    assert (found.epochs, found.seconds) == (36, None), "nobody works"
