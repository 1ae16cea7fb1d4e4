"""When training stands still, and when a worker does as a whole, seen from another process."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from pipeline.sweep.pulse import LEAST_S, UNKNOWN_S, Pulse
from tests.integration.commands import wait_until

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def clock(monkeypatch):
    """The machine's clock, as a list of one."""
    now_s = [1000.0]
    monkeypatch.setattr("pipeline.sweep.pulse.time.monotonic", lambda: now_s[0])
    return now_s


@pytest.mark.parametrize(
    ("given_s", "epochs_s", "limit_s"),
    [
        (None, [], UNKNOWN_S),
        (None, [1.0], LEAST_S),
        (None, [10.0, 30.0, 20.0], 200.0),
        (7.0, [10.0], 7.0),
        (7.0, [], 7.0),
    ],
)
def test_training_may_stand_still_for_ten_median_epochs_or_as_long_as_was_given(clock, given_s, epochs_s, limit_s):
    pulse = Pulse(CONTEXT, given_s)
    assert pulse.still_s() is None, "nothing has begun"
    pulse.begin()
    pulse.moved()
    pulse.expect(epochs_s)
    clock[0] += limit_s
    assert pulse.still_s() is None
    clock[0] += 1
    assert pulse.still_s() == limit_s + 1
    pulse.moved()
    assert pulse.still_s() is None


def test_until_it_first_moves_training_has_an_hour(clock):
    pulse = Pulse(CONTEXT, None)
    pulse.begin()
    clock[0] += UNKNOWN_S
    assert pulse.still_s() is None


def test_what_rests_counts_as_moving_for_the_database(clock):
    pulse = Pulse(CONTEXT, None)
    pulse.begin()
    clock[0] += 1
    assert not pulse.has_moved_since(1000.5)
    with pulse.resting():
        assert pulse.has_moved_since(1000.5)
    assert pulse.has_moved_since(1000.5)
    assert not pulse.has_moved_since(1001.5)


def rest(pulse: Pulse, begun: Connection) -> None:
    pulse.keep()
    pulse.begin()
    with pulse.resting():
        begun.send(None)
        signal.pause()


def test_a_process_that_is_frozen_while_it_does_not_have_to_move_is_seen_and_one_that_rests_is_not():
    pulse = Pulse(CONTEXT, 0.5)
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=rest, args=(pulse, theirs))
    process.start()
    try:
        ours.recv()
        began_s = pulse._shared[0]
        wait_until(
            lambda: pulse._shared[0] > began_s + 1, "it has rested for twice as long as training may stand still"
        )
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: pulse.still_s() is not None, "the frozen process is seen")
    finally:
        process.kill()
        process.join()
        for one in (ours, theirs, process):
            one.close()


def test_a_new_limit_is_never_held_against_an_old_time(clock):
    """An epoch may be the first, and take longer than the limit that it then sets, when the supervisor looks."""
    pulse = Pulse(CONTEXT, None)
    pulse.begin()
    clock[0] += UNKNOWN_S
    shared = pulse._shared

    class Looking:
        """Lets time stop between any two writes, for the supervisor to look."""

        def __getitem__(self, index):
            return shared[index]

        def __setitem__(self, index, value):
            places = range(2)[index] if isinstance(index, slice) else [index]
            values = value if isinstance(index, slice) else [value]
            for place, one in zip(places, values, strict=True):
                shared[place] = one
                pulse._shared = shared
                assert pulse.still_s() is None
                pulse._shared = self

    pulse._shared = Looking()
    pulse.moved()
    pulse.expect([1.0])
    clock[0] += 1
    pulse.end()
    clock[0] += 1
    pulse.begin()
