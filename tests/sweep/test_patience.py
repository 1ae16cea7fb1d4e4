"""A study whose database goes away and comes back: who waits for it, for how long, and what is known afterwards."""

import time

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from pipeline.sweep import patience
from pipeline.sweep.patience import Unsaved, patient
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.storage import GRACE_S
from tests.sweep.trials import new_study


class Away:
    """A storage whose calls of one method fail, as if the connection broke: before they reach it, or after."""

    def __init__(self, storage, method, *, is_done):
        self._storage, self._method, self._is_done = storage, method, is_done
        self.calls = 0

    def __getattr__(self, name):
        found = getattr(self._storage, name)
        if name != self._method:
            return found

        def call(*arguments, **named):
            self.calls += 1
            if self.calls > 1:
                return found(*arguments, **named)
            if self._is_done:
                found(*arguments, **named)
            raise OperationalError("a statement", {}, Exception("the connection broke"))

        return call


@pytest.fixture
def study(tmp_path):
    found = new_study(tmp_path)
    yield found
    found._heartbeats.engine.dispose()


def claimed(study):
    study.add_configuration(0, until=1)
    found = next_segment(study)
    assert found not in ("wait", "done")
    return found.head


def test_every_call_waits_until_the_server_is_back(tmp_path, postgres, monkeypatch):
    study = patient(new_study(tmp_path, postgres.database()), outage_s=3600)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            postgres.start()

    trial = claimed(study)
    postgres.stop()
    monkeypatch.setattr(patience.time, "sleep", pause)
    study.set(trial._trial_id, "said", "once the server was back")
    assert pauses == [0.25, 0.5, 1.0]
    assert study.trials()[0].user_attrs["said"] == "once the server was back"
    study._heartbeats._storage.engine.dispose()


def test_who_has_waited_for_long_enough_stops_resumably_and_waits_no_more(study, monkeypatch):
    storage = study.storage
    waiting = patient(study, outage_s=0)

    def away(*arguments, **named):
        reason = Exception("nobody listens")
        raise OperationalError("a statement", {}, reason) from reason

    monkeypatch.setattr(storage, "get_all_trials", away)
    for _ in range(2):
        with pytest.raises(Unsaved, match="the study database cannot be reached, for 0 s by now: nobody listens;"):
            waiting.trials()


def test_what_is_wrong_with_a_call_is_not_waited_for(study):
    with pytest.raises(KeyError):
        patient(study, outage_s=3600).storage.get_trial(99)


def test_after_an_outage_nobody_is_taken_for_dead_for_a_grace_period(study, monkeypatch):
    trial = claimed(study)
    now_s = time.monotonic()
    monkeypatch.setattr("pipeline.sweep.study.time.monotonic", lambda: now_s + GRACE_S)
    monkeypatch.setattr("pipeline.sweep.study._gone", lambda trial, stale: trial._trial_id in stale)
    monkeypatch.setattr(study._heartbeats, "_get_stale_trial_ids", lambda _: [trial._trial_id])
    study.storage = Away(study.storage, "get_study_user_attrs", is_done=False)
    waiting = patient(study, outage_s=3600)
    monkeypatch.setattr(patience.time, "sleep", lambda _: None)
    assert waiting.attrs, "the outage is noticed by a call that has nothing to do with the dead"
    assert waiting.close_dead() == []
    monkeypatch.setattr("pipeline.sweep.study.time.monotonic", lambda: now_s + 3 * GRACE_S)
    assert [one.number for one in waiting.close_dead()] == [0]


@pytest.mark.parametrize("is_done", [False, True], ids=["not claimed", "claimed"])
def test_a_claim_whose_answer_was_lost_is_ended_and_its_successor_claimed(study, is_done):
    study.add_configuration(0, until=1)
    study._once = Away(study._once, "set_trial_state_values", is_done=is_done)
    lineage = next_segment(patient(study, outage_s=3600))
    assert [segment.state for segment in lineage.segments] == [TrialState.FAIL, TrialState.RUNNING]
    assert lineage.endings == ["preempted"]
    assert lineage.head.user_attrs["parent"] == 0


@pytest.mark.parametrize("is_done", [False, True], ids=["not ended", "ended"])
def test_an_end_whose_answer_was_lost_is_an_end(study, is_done):
    trial = claimed(study)
    study._once = Away(study._once, "set_trial_state_values", is_done=is_done)
    patient(study, outage_s=3600).end(trial._trial_id, TrialState.COMPLETE, "complete", 0.5)
    (ended,) = study.trials()
    assert (ended.state, ended.user_attrs["ended"], ended.value) == (TrialState.COMPLETE, "complete", 0.5)
    assert study._once.calls == (1 if is_done else 2)
