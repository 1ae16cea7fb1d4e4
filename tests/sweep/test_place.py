"""Where a worker's training stands, as another process reads it."""

import multiprocessing

import pytest

from pipeline.sweep.place import SharedPlace

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def clock(monkeypatch):
    """The machine's clock, as a list of one."""
    now_s = [1000.0]
    monkeypatch.setattr("pipeline.sweep.place.time.monotonic", lambda: now_s[0])
    return now_s


def test_a_place_follows_training_and_keeps_its_last_loss(clock):
    shared = SharedPlace(CONTEXT)
    assert (shared.read(), shared.has_begun) == (None, False)
    shared.begin(7, until=9, epochs=3, inside=False)
    place = shared.read()
    assert place is not None
    assert (place.configuration, place.until, place.epochs, place.batch, place.loss) == (7, 9, 3, 0, None)
    shared.moved(1, {"accuracy": [1.0, 2.0], "train_loss": [3.0, 2.0]})
    clock[0] += 10
    shared.moved(2, {"accuracy": [1.0, 3.0], "train_loss": [3.0, 3.0]})
    place = shared.read()
    assert place is not None
    assert (place.batch, place.batches, place.loss_name, place.loss) == (2, 2, "train_loss", 1.0)
    assert (place.epoch_s, place.elapsed_s) == (None, 10)
    shared.moved(0, {})
    place = shared.read()
    assert place is not None
    assert (place.epochs, place.batch, place.batches, place.loss) == (4, 0, 2, 1.0)
    assert (place.epoch_s, place.elapsed_s) == (10, 0)
    shared.end()
    assert (shared.read(), shared.has_begun) == (None, True)


def test_an_epoch_that_another_segment_has_begun_says_nothing_of_how_long_one_takes(clock):
    shared = SharedPlace(CONTEXT)
    shared.begin(7, until=9, epochs=3, inside=True)
    clock[0] += 1
    shared.moved(0, {})
    clock[0] += 20
    shared.moved(0, {})
    place = shared.read()
    assert place is not None
    assert (place.epochs, place.epoch_s) == (5, 20)


def test_without_a_loss_the_first_average_is_told_under_its_name():
    shared = SharedPlace(CONTEXT)
    shared.begin(0, until=1, epochs=0, inside=False)
    shared.moved(1, {"nats": [1.0, 2.0], "accuracy": [1.0, 1.0]})
    place = shared.read()
    assert place is not None
    assert (place.loss_name, place.loss) == ("nats", 0.5)
