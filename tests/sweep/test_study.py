"""A study in its database: claims, successors, the fence, and what is done about the dead."""

import multiprocessing
import os
import signal

import pytest
from optuna.trial import TrialState

from pipeline.errors import ThawError, UsageError
from pipeline.sweep import process
from pipeline.sweep.storage import GRACE_S
from pipeline.sweep.study import Fenced, Study, study_names
from tests.sweep.claiming import claim_one_and_wait
from tests.sweep.trials import new_study, spec


@pytest.fixture(params=["sqlite", "postgresql"])
def study(request, tmp_path):
    url = request.getfixturevalue("postgres").database() if request.param == "postgresql" else None
    found = new_study(tmp_path, url)
    yield found
    found._heartbeats.engine.dispose()


def only(study, number=0):
    return study.lineages()[number]


def claimed(study, number=0):
    """Makes a new configuration and claims it."""
    study.add_configuration(number, until=1)
    assert study.claim(only(study, number).head)
    return only(study, number).head


def test_a_study_comes_back_by_its_name_with_its_spec(study):
    assert Study.load("s", study.url).spec == spec()


def test_a_study_that_is_not_there_is_an_error_that_lists_those_that_are(study):
    with pytest.raises(UsageError, match=r"--study other: no such study .*there: s"):
        Study.load("other", study.url)


def test_a_study_whose_creation_was_cut_off_takes_the_next_spec(tmp_path):
    study = new_study(tmp_path)
    study._heartbeats.create_new_study([study.storage.get_study_directions(study.id)[0]], "half")
    with pytest.raises(ThawError, match="'half' was not finished being created"):
        _ = Study.load("half", study.url).spec
    assert Study.open("half", study.url, spec(seed=5), accept_change=False).spec == spec(seed=5)


def test_studies_that_were_not_made_here_are_none_of_ours(study):
    study._heartbeats.create_new_study([study.storage.get_study_directions(study.id)[0]], "optunas own")
    assert study_names(study.url) == []
    study.set_attr("site", {})
    assert study_names(study.url) == ["s"]


def test_a_name_taken_by_another_spec_is_refused_and_the_study_stays_as_it_is(study):
    with pytest.raises(UsageError, match="configurations: 9 -> 8"):
        Study.open("s", study.url, spec(configurations=8), accept_change=True)
    assert study.spec == spec()


def test_an_accepted_change_of_code_is_recorded(study):
    Study.open("s", study.url, spec(code="d" * 64), accept_change=True)
    assert study.spec == spec(code="d" * 64)
    (entry,) = study.attrs["accepted_changes"]
    assert entry["code"] == ["c" * 64, "d" * 64]


def test_a_claimed_trial_cannot_be_claimed_again(study):
    trial = claimed(study)
    assert not Study.load("s", study.url).claim(trial)
    assert only(study).head.user_attrs["worker"] == process.identity()


def test_an_ended_trial_cannot_be_claimed(study):
    trial = claimed(study)
    study.end(trial._trial_id, TrialState.FAIL, "lost")
    assert not study.claim(trial)


def test_every_write_of_a_worker_that_lost_its_trial_is_fenced(study):
    trial = claimed(study)
    other = Study.load("s", study.url)
    other.end(trial._trial_id, TrialState.FAIL, "lost")
    before = other.trials()[0]
    for write in (
        lambda: study.set(trial._trial_id, "progress", {"checkpoint": "x", "epochs": 1, "best": None}),
        lambda: study.report(trial._trial_id, 1, 0.5),
        lambda: study.end(trial._trial_id, TrialState.PRUNED, "paused"),
        lambda: study.end(trial._trial_id, TrialState.COMPLETE, "complete", 0.1),
    ):
        with pytest.raises(Fenced):
            write()
    after = Study.load("s", study.url).trials()[0]
    assert (after.state, after.user_attrs, after.intermediate_values) == (
        before.state,
        before.user_attrs,
        before.intermediate_values,
    )
    assert only(study).ended == "lost"


def test_a_successor_has_what_its_parent_had(study):
    trial = claimed(study)
    progress = {"checkpoint": "s0-e00001-b000000-t000000", "epochs": 1, "best": None}
    for name, value in {"config": {"lr": 0.1}, "run_id": "r", "progress": progress}.items():
        study.set(trial._trial_id, name, value)
    study.report(trial._trial_id, 1, 0.25)
    study.end(trial._trial_id, TrialState.PRUNED, "paused")
    study.add_successor(only(study), until=3)
    lineage = only(study)
    assert [segment.number for segment in lineage.segments] == [0, 1]
    assert lineage.head.state is TrialState.WAITING
    assert lineage.head.user_attrs == {
        "configuration": 0,
        "parent": 0,
        "until": 3,
        "start": progress["checkpoint"],
        "config": {"lr": 0.1},
        "run_id": "r",
        "progress": progress,
    }
    assert lineage.head.intermediate_values == {1: 0.25}


def test_a_configuration_that_was_interrupted_while_it_was_drawn_is_drawn_anew(study):
    trial = claimed(study)
    from optuna.distributions import FloatDistribution

    study.storage.set_trial_param(trial._trial_id, "lr", 0.5, FloatDistribution(0, 1))
    study.end(trial._trial_id, TrialState.FAIL, "lost")
    study.add_successor(only(study), until=1)
    assert only(study).head.params == {}


def test_of_two_successors_the_higher_is_closed_and_the_lower_stays(study):
    trial = claimed(study)
    study.end(trial._trial_id, TrialState.FAIL, "lost")
    lineage = only(study)
    study.add_successor(lineage, until=1)
    study.add_successor(lineage, until=1)
    assert study.close_dead() == []
    trials = study.trials()
    assert [t.state for t in trials] == [TrialState.FAIL, TrialState.WAITING, TrialState.FAIL]
    assert trials[2].user_attrs["ended"] == "duplicate"
    assert [segment.number for segment in only(study).segments] == [0, 1]


def test_two_that_create_one_configuration_leave_one(study):
    study.add_configuration(0, until=1)
    study.add_configuration(0, until=1)
    study.close_dead()
    assert [t.state for t in study.trials()] == [TrialState.WAITING, TrialState.FAIL]


def silence(study):
    """As if no heartbeat had come for long."""
    with study._heartbeats.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2001-01-01 00:00:00'")


def in_process(study, results):
    context = multiprocessing.get_context("forkserver")
    started = context.Process(target=claim_one_and_wait, args=(study.url, results))
    started.start()
    return started


def test_the_trial_of_a_killed_process_is_closed_at_once_and_that_of_a_living_one_is_not(study):
    study.add_configuration(0, until=1)
    ours, theirs = multiprocessing.get_context("forkserver").Pipe()
    worker = in_process(study, theirs)
    assert ours.recv()
    assert study.close_dead() == []
    assert only(study).head.state is TrialState.RUNNING
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert [trial.number for trial in study.close_dead()] == [0]
    assert only(study).ended == "lost"
    assert study.close_dead() == []
    for one in (ours, theirs, worker):
        one.close()


def claim_and_die(study, monkeypatch, identity):
    """Claims the only trial as this process, which is killed before it writes anything else."""
    study.add_configuration(0, until=1)
    claim = study.storage.set_trial_state_values

    class Killed(BaseException):
        pass

    def claim_and_raise(*args):
        claim(*args)
        raise Killed

    with monkeypatch.context() as there:
        there.setattr(process, "identity", lambda *_: identity)
        there.setattr(study.storage, "set_trial_state_values", claim_and_raise)
        with pytest.raises(Killed):
            study.claim(only(study).head)
    assert "worker" not in Study.load("s", study.url).trials()[0].user_attrs


def test_a_process_killed_right_after_its_claim_is_found_by_what_it_wrote_before(study, monkeypatch):
    claim_and_die(study, monkeypatch, process.identity() | {"pid": 2**22 + 1})  # above any process number
    assert [trial.number for trial in Study.load("s", study.url).close_dead()] == [0]


def test_a_process_of_another_host_killed_right_after_its_claim_is_found_by_its_heartbeat(study, monkeypatch):
    claim_and_die(study, monkeypatch, process.identity() | {"host": "another"})
    assert study.close_dead() == []
    silence(study)
    study._works_since_s -= GRACE_S
    assert [trial.number for trial in study.close_dead()] == [0]


def test_who_comes_too_late_for_a_claim_does_not_become_its_owner(study, monkeypatch):
    """Else the trial of a dead worker would be kept open by a living one that never had it."""
    study.add_configuration(0, until=1)
    trial = only(study).head
    other = Study.load("s", study.url)
    write, me = other.storage.set_trial_user_attr, process.identity()

    def after_the_claim(trial_id, name, value):
        monkeypatch.setattr(other.storage, "set_trial_user_attr", write)
        assert study.claim(trial)
        write(trial_id, name, value | {"pid": 1})

    monkeypatch.setattr(other.storage, "set_trial_user_attr", after_the_claim)
    assert not other.claim(trial)
    assert only(study).head.user_attrs["worker"] == me


def test_a_trial_of_another_host_is_left_to_its_heartbeat(study, monkeypatch):
    elsewhere = process.identity() | {"host": "another", "pid": 2**22 + 1}
    study.add_configuration(0, until=1)
    with monkeypatch.context() as there:
        there.setattr(process, "identity", lambda *_: elsewhere)
        assert study.claim(only(study).head)
    assert study.close_dead() == []
    silence(study)
    assert study.close_dead() == [], "a process that has just begun cannot know whether the storage was away"
    study._works_since_s -= GRACE_S
    assert [trial.number for trial in study.close_dead()] == [0]


def test_nothing_is_closed_by_its_heartbeat_for_a_while_after_the_storage_was_away(study, monkeypatch):
    elsewhere = process.identity() | {"host": "another", "pid": 2**22 + 1}
    study.add_configuration(0, until=1)
    with monkeypatch.context() as there:
        there.setattr(process, "identity", lambda *_: elsewhere)
        assert study.claim(only(study).head)
    silence(study)
    study._works_since_s -= GRACE_S

    def away(*_):
        raise OSError("away")

    with monkeypatch.context() as broken:
        broken.setattr(study._heartbeats, "_get_stale_trial_ids", away)
        with pytest.raises(OSError, match="away"):
            study.close_dead()
    assert study.close_dead() == []
    study._works_since_s -= GRACE_S
    assert [trial.number for trial in study.close_dead()] == [0]


def test_the_trial_of_a_worker_that_is_watched_is_left_to_who_watches_it(study, monkeypatch):
    study.add_configuration(0, until=1)
    watcher = process._process(os.getppid())
    dead = process.identity() | {"pid": 2**22 + 1, "supervisor": watcher}
    with monkeypatch.context() as there:
        there.setattr(process, "identity", lambda *_: dead)
        assert study.claim(only(study).head)
    assert study.close_dead() == []
    study.set(only(study).head._trial_id, "worker", dead | {"supervisor": process._process(os.getpid())})
    assert [trial.number for trial in study.close_dead()] == [0]


def test_a_silent_worker_that_nobody_watches_any_more_loses_its_trial(study):
    trial = claimed(study)
    gone = process.identity() | {"pid": 2**22 + 1}
    silence(study)
    study._works_since_s -= GRACE_S
    assert study.close_dead() == []
    study.set(trial._trial_id, "worker", process.identity() | {"supervisor": gone})
    assert [one.number for one in study.close_dead()] == [0]


def test_a_silent_process_of_this_host_keeps_its_trial_while_it_lives(study):
    claimed(study)
    silence(study)
    assert study.close_dead() == []


def test_a_number_that_another_process_has_by_now_is_not_taken_for_the_dead_one(study):
    me = process.identity()
    assert not process.is_dead(me)
    assert process.is_dead(me | {"started_s": me["started_s"] - 100})


def test_setting_the_clock_kills_nobody(monkeypatch):
    import psutil

    me = process.identity()
    boot_s = psutil.boot_time()
    start_s = psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_s + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: start_s(self) + 3600)
    assert not process.is_dead(me)
    assert process.identity() == me
