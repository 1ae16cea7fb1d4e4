"""Sweeps of 20 configurations by 4 workers, through 30 kills, workers that come back from the dead, and outages."""

import os
import random
from collections.abc import Callable
from functools import partial

import pytest

from tests.chaos.chaos import Chaos
from tests.chaos.checker import assert_survived, endings
from tests.integration.commands import Workplace
from tests.integration.sweeps import Sweep
from tests.tracking_server import TrackingServer

CONFIGURATIONS = 20
KILLS = 30
Event = Callable[[Chaos], None]
FLAGS = (
    *("--workers", "4", "--sampler", "random"),
    *("--max-retries", "1000", "--hang-timeout-s", "8"),
)


@pytest.fixture
def chance():
    """The seed in the output of a failed test, given as CHAOS_SEED, repeats its events; times are the machine's."""
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(2**32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def tracking_server():
    server = TrackingServer()
    yield server
    server.close()


@pytest.fixture
def workplace(tmp_path):
    place = Workplace(tmp_path / "work")
    yield place
    place.close()


@pytest.fixture
def served(tmp_path, postgres, tracking_server):
    """A workplace whose databases are servers'; MLflow tries nothing again by itself."""
    place = Workplace(
        tmp_path / "work",
        tracking_uri=tracking_server.uri,
        storage_url=postgres.database(),
        environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
    )
    yield place
    place.close()
    postgres.ensure_running()


def survive(workplace: Workplace, chance: random.Random, events: list[Event]) -> Chaos:
    """Starts a sweep, lets the events come over it in any order, and checks what it has come to."""
    sweep = Sweep.of(workplace, *FLAGS)
    chaos = Chaos(sweep, chance, "quick", CONFIGURATIONS)
    for event in chance.sample(events, len(events)):
        event(chaos)
    chaos.make_hung_a_zombie()
    chaos.finish()
    lineages = assert_survived(
        sweep, configurations=chaos.configurations, fences=chaos.fences, folder=workplace.folder / "undisturbed"
    )
    adopted = sum("adopted" in segment.user_attrs for one in lineages.values() for segment in one.segments)
    print(dict(endings(lineages)), f"and {adopted} went on from what was left on the disk")
    errors = [
        segment.user_attrs["error"]
        for one in lineages.values()
        for segment in one.segments
        if segment.user_attrs.get("ended") == "bug"
    ]
    assert errors == []
    assert endings(lineages)["hang"] == 1
    return chaos


def test_through_thirty_kills_and_zombies_nothing_is_lost_and_nothing_is_trained_twice(workplace, chance):
    events = [
        *[Chaos.kill_worker] * 17,
        *[Chaos.kill_supervisor] * 5,
        *[Chaos.kill_session] * 5,
        *[Chaos.make_orphan_a_zombie] * 3,  # each kills a supervisor
    ]
    chaos = survive(workplace, chance, events)
    assert chaos.kills == KILLS
    assert [fence.how for fence in chaos.fences] == [*["orphan"] * 3, "hung"]


def test_servers_that_go_away_in_the_middle_of_it_change_nothing(served, postgres, tracking_server, chance):
    events = [
        *[Chaos.kill_worker] * 14,
        *[Chaos.kill_supervisor] * 3,
        *[Chaos.kill_session] * 3,
        *[Chaos.make_orphan_a_zombie] * 3,
        partial(Chaos.take_away, server=tracking_server, victim="worker"),
        *[
            partial(Chaos.take_away, server=server, victim=victim)
            for server in (tracking_server, postgres)
            for victim in ("worker", "supervisor", "session")
        ],
    ]
    chaos = survive(served, chance, events)
    assert chaos.kills == KILLS
    assert [fence.how for fence in chaos.fences] == [*["orphan"] * 3, "hung"]
