"""A search that dies again and again draws the same configurations, promotes the same ones, and in the same order."""

import multiprocessing
import os
import random

import pytest

from tests.sweep.searching import DIED, search
from tests.sweep.trials import new_study

CONFIGURATIONS = 12  # TPE draws at random until it has ten


def searched(folder, dies_at):
    process = multiprocessing.get_context("fork").Process(target=search, args=(folder, dies_at))
    process.start()
    process.join()
    assert process.exitcode in (0, DIED)
    return process.exitcode == 0


def decisions(study):
    reached = [t for t in study.trials() if t.user_attrs["ended"] in ("paused", "complete")]
    return [
        (t.user_attrs["configuration"], t.user_attrs["until"], t.params, t.values)
        for t in sorted(reached, key=lambda t: t.datetime_complete)
    ]


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "halving"), ("cmaes", "hyperband")])
def test_a_search_that_dies_before_any_commits_decides_what_one_that_lives_does(tmp_path, sampler, pruner):
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={seed}")
    chance, found = random.Random(seed), []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        found.append(new_study(tmp_path / name, configurations=CONFIGURATIONS, sampler=sampler, pruner=pruner))
        found[-1]._heartbeats.engine.dispose()  # a connection does not survive a fork
    whole, killed = found
    assert searched(tmp_path / "whole", 0)
    deaths = 0
    while not searched(tmp_path / "killed", chance.randrange(10, 70)):
        deaths += 1
    assert deaths > 2
    assert decisions(killed) == decisions(whole)
    assert len({str(params) for _, _, params, _ in decisions(killed)}) == CONFIGURATIONS
