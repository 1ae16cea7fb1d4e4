"""How long ago who trains has last given a sign of life, by the clock of either database."""

from pathlib import Path

import pytest

from tests.sweep.trials import new_study


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_last_heartbeat_is_told_of_who_trains_and_in_no_time_zone(tmp_path: Path, request, database: str):
    url = request.getfixturevalue("postgres").database() if database == "postgresql" else None
    study = new_study(tmp_path, url)
    study.add_configuration(0, until=1)
    study.add_configuration(1, until=1)
    (claimed, _) = study.trials()
    assert study.claim(claimed)
    (silence,) = study.silences().items()
    assert silence[0] == claimed._trial_id
    assert round(silence[1] / 3600) == 0, "it is off by no time zone"
