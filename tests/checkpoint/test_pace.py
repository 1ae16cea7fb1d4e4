"""How often a checkpoint is taken, by a clock that the test winds."""

import pytest

from pipeline.checkpoint import Taken
from pipeline.checkpoint.buffers import Arena
from pipeline.checkpoint.pace import SHARE, UNKNOWN_S, Pace
from pipeline.checkpoint.snapshots import Written


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.checkpoint.pace.time", clock)
    return clock


def taken(stall_s: float, cpu_s: float, wall_s: float) -> Taken:
    one = Taken(Arena())
    one.stall_s, one.written = stall_s, Written(cpu_s=cpu_s, wall_s=wall_s)
    return one


def test_a_fixed_interval_counts_from_the_last_checkpoint(clock):
    pace = Pace(5.0)
    clock.now_s += 4.9
    assert not pace.due()
    clock.now_s += 0.2
    assert pace.due()
    pace.taken(taken(9.0, 9.0, 9.0))
    assert not pace.due()
    clock.now_s += 5.1
    assert pace.due()


def test_the_measured_cost_decides_the_interval(clock):
    pace = Pace("auto")
    assert pace.interval_s == UNKNOWN_S
    pace.taken(taken(stall_s=0.01, cpu_s=0.03, wall_s=0.5))
    assert pace.interval_s == pytest.approx(0.04 / SHARE)
    clock.now_s += 0.04 / SHARE + 0.01
    assert pace.due()


def test_none_begins_before_the_last_one_is_written(clock):
    pace = Pace("auto")
    pace.taken(taken(stall_s=0.0, cpu_s=0.001, wall_s=30.0))
    assert pace.interval_s == 30.0


def test_a_checkpoint_that_is_not_written_yet_changes_nothing(clock):
    pace = Pace("auto")
    pace.taken(taken(stall_s=0.01, cpu_s=0.01, wall_s=0.1))
    known_s = pace.interval_s
    pace.taken(Taken(Arena()))
    assert pace.interval_s == known_s
