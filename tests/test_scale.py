"""What a database carries, on paper."""

import pytest

from benchmarks.scale import cores, most_workers

COSTS = {"epoch_s": 10.0, "segment_epochs": 5, "per_epoch_s": 0.01, "per_segment_s": 0.05, "per_open_s": 0.0001}


def test_each_epoch_and_its_share_of_a_segment_take_of_the_database():
    # 10 epochs a second; 2 segments, each of which reads 100 trials that run
    assert cores(100, **COSTS) == pytest.approx(10 * 0.01 + 2 * (0.05 + 100 * 0.0001))


def test_the_most_workers_are_those_that_one_more_would_be_too_many():
    found = most_workers(1.0, **COSTS)
    assert cores(found, **COSTS) <= 1.0 < cores(found + 1, **COSTS)
