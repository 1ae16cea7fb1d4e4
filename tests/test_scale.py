"""What a database carries: on paper, and what simulated workers send it."""

import pytest
from optuna.storages._rdb.models import TrialHeartbeatModel
from sqlalchemy import select

from benchmarks.scale import cores, most_workers
from benchmarks.scale_workers import Epochs, begun, epoch, spec
from pipeline.sweep.storage import prepare_storage
from pipeline.sweep.study import Study

COSTS = {"epoch_s": 10.0, "segment_epochs": 5, "per_epoch_s": 0.01, "per_segment_s": 0.05, "per_open_s": 0.0001}


def test_each_epoch_and_its_share_of_a_segment_take_of_the_database():
    # 10 epochs a second; 2 segments, each of which reads 100 trials that run
    assert cores(100, **COSTS) == pytest.approx(10 * 0.01 + 2 * (0.05 + 100 * 0.0001))


def test_the_most_workers_are_those_that_one_more_would_be_too_many():
    found = most_workers(1.0, **COSTS)
    assert cores(found, **COSTS) <= 1.0 < cores(found + 1, **COSTS)


def test_an_epoch_that_is_sent_leaves_what_a_real_one_does(postgres):
    url = postgres.database()
    prepare_storage(url)
    study = Study.open("scale", url, spec(9), accept_change=False)
    recorded, sent, real = (begun(study, number, 3) for number in range(3))
    epochs = Epochs(study, recorded, 4)

    def heartbeat(trial_id):
        with study._heartbeats.engine.connect() as connection:
            column, owner = TrialHeartbeatModel.heartbeat, TrialHeartbeatModel.trial_id
            return connection.execute(select(column).where(owner == trial_id)).scalar_one()

    before = heartbeat(sent)
    for done in (4, 5):
        epochs.send(sent, done)
        epoch(study, real, done)
    assert heartbeat(sent) > before
    left = [study.storage.get_trial(trial_id) for trial_id in (sent, real)]
    assert left[0].intermediate_values == left[1].intermediate_values == dict.fromkeys(range(1, 6), 1.0)
    for trial in left:
        assert trial.user_attrs["progress"]["epochs"] == 5
        assert trial.user_attrs["progress"]["checkpoint"].endswith(f"-t{trial._trial_id:06}")
    study.close()
