"""What is told of what has happened to configurations, and of who trains."""

from datetime import datetime, timedelta

from pipeline.sweep.lineage import lineages
from pipeline.terminal.overview import events
from tests.sweep.trials import checkpoint_of, segment

BEGAN = datetime.fromisoformat("2026-03-01T12:00:00")


def test_who_was_promoted_reopened_or_resumed_is_told_apart():
    trials = [
        segment(0, 0, "paused", epochs=1, values={1: 0.25}),
        segment(1, 0, "hang", parent=0, start=checkpoint_of(0, 1), epochs=2, until=3),
        segment(2, 0, "pruned", parent=1, start=checkpoint_of(1, 2), epochs=3, until=3),
        segment(3, 0, None, parent=2, start=checkpoint_of(2, 3), epochs=3, until=9, reopened=True, fresh=True),
    ]
    for number, trial in enumerate(trials):
        trial.datetime_start = BEGAN + timedelta(seconds=10 * number)
        trial.datetime_complete = None if number == 3 else BEGAN + timedelta(seconds=10 * number + 5)
    found = events(lineages(trials).values(), "loss")
    assert [(one.at - BEGAN).seconds for one in found] == [5, 10, 15, 20, 25, 30]
    assert [(one.kind, one.text) for one in found] == [
        ("paused", "paused at epoch 1, loss 0.25"),
        ("promoted", "promoted to epoch 3"),
        ("hang", "hung at epoch 2 and was killed"),
        ("resumed", "resumed from epoch 2"),
        ("pruned", "pruned at epoch 3"),
        ("reopened", "reopened to epoch 9"),
    ]
