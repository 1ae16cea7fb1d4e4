"""A sweep of 20 configurations by 4 workers, through 30 kills and workers that come back from the dead."""

import os
import random

import pytest

from tests.chaos.chaos import Chaos
from tests.chaos.checker import assert_survived, endings
from tests.integration.commands import Workplace
from tests.integration.sweeps import Sweep

CONFIGURATIONS = 20
KILLS = 30
EVENTS = (
    *[Chaos.kill_worker] * 17,
    *[Chaos.kill_supervisor] * 5,
    *[Chaos.kill_session] * 5,
    *[Chaos.make_orphan_a_zombie] * 3,  # each kills a supervisor
)
FLAGS = (
    *("--configurations", str(CONFIGURATIONS), "--workers", "4", "--sampler", "random"),
    *("--max-retries", "1000", "--hang-timeout-s", "8"),
)


@pytest.fixture
def workplace(tmp_path):
    place = Workplace(tmp_path / "work")
    yield place
    place.close()


@pytest.fixture
def chance():
    """The seed in the output of a failed test, given as CHAOS_SEED, repeats its events; times are the machine's."""
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(2**32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


def test_through_thirty_kills_and_zombies_nothing_is_lost_and_nothing_is_trained_twice(workplace, chance, tmp_path):
    sweep = Sweep.of(workplace, *FLAGS, "--storage", workplace.storage_url)
    chaos = Chaos(sweep, chance, "quick")
    for event in chance.sample(EVENTS, len(EVENTS)):
        event(chaos)
    chaos.make_hung_a_zombie()
    chaos.finish()
    assert chaos.kills == KILLS
    assert [fence.how for fence in chaos.fences] == [*["orphan"] * 3, "hung"]
    lineages = assert_survived(
        sweep, configurations=CONFIGURATIONS, fences=chaos.fences, folder=tmp_path / "undisturbed"
    )
    print(dict(endings(lineages)))
    assert endings(lineages)["bug"] == 0
    assert endings(lineages)["hang"] == 1
