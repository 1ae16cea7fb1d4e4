"""MLflow runs, on a real database: everything can be repeated, and nothing stands there twice."""

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.tracking import runs
from pipeline.tracking.runs import active, ensure_run, find_run, find_runs, log_final, log_history, set_state
from tests.integration.commands import wait_until

KEY = {"kind": "configuration", "configuration": "3"}


def made(experiment_id, key=KEY, **more):
    return ensure_run(experiment_id, name="#03", key=key, params={"lr": 0.1}, **more)


def status(run_id):
    run = MlflowClient().get_run(run_id)
    return run.info.status, run.data.tags.get("state")


def steps(run_id, name="loss"):
    return [(m.step, m.value) for m in MlflowClient().get_metric_history(run_id, name)]


def test_a_run_is_made_once_and_found_again_by_its_key(experiment_id):
    run_id = made(experiment_id, tags={"study": "s"}, parent=None)
    assert made(experiment_id, tags={"study": "s"}) == run_id
    (run,) = find_runs(experiment_id, KEY)
    assert run.info.run_id == run_id
    assert run.info.run_name == "#03"
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["study"] == "s"


def test_another_key_is_another_run(experiment_id):
    assert made(experiment_id) != made(experiment_id, KEY | {"configuration": "4"})
    assert len(find_runs(experiment_id, {"kind": "configuration"})) == 2


def test_a_run_whose_making_was_cut_off_is_completed(experiment_id):
    half = MlflowClient().create_run(experiment_id, tags=KEY).info.run_id
    parent = MlflowClient().create_run(experiment_id).info.run_id
    assert made(experiment_id, tags={"study": "s"}, parent=parent) == half
    run = MlflowClient().get_run(half)
    assert run.data.params == {"lr": "0.1"}
    assert (run.data.tags["study"], run.data.tags["mlflow.parentRunId"]) == ("s", parent)
    assert run.info.run_name == "#03"


def test_the_oldest_of_several_is_the_one(experiment_id):
    first, second = (MlflowClient().create_run(experiment_id, t, tags=KEY).info.run_id for t in (1_000, 2_000))
    assert [run.info.run_id for run in find_runs(experiment_id, KEY)] == [first, second]
    found = find_run(experiment_id, KEY)
    assert found is not None
    assert found.info.run_id == first


def test_the_run_of_a_project_is_adopted_when_there_is_none_yet(experiment_id):
    project, other = (MlflowClient().create_run(experiment_id).info.run_id for _ in range(2))
    assert made(experiment_id, adopt=project) == project
    assert made(experiment_id, adopt=other) == project
    assert "kind" not in MlflowClient().get_run(other).data.tags


@pytest.mark.parametrize("value", ["it's", 'say "x"', "a`b", "back\\slash", "50%", "été", ""])
def test_a_run_is_found_by_tags_with_any_character(experiment_id, value):
    run_id = made(experiment_id, {"kind": "prepare", "file": value or "-"})
    found = find_run(experiment_id, {"kind": "prepare", "file": value or "-"})
    assert found is not None
    assert found.info.run_id == run_id
    assert find_run(experiment_id, {"kind": "prepare", "file": "other"}) is None


def test_states_have_mlflows_status_beside_them(experiment_id):
    run_id = made(experiment_id)
    expected = {
        "paused": "SCHEDULED",
        "running": "RUNNING",
        "interrupted": "KILLED",
        "failed": "FAILED",
        "pruned": "FINISHED",
        "complete": "FINISHED",
    }
    for state, mlflow_status in expected.items():
        set_state(run_id, state, trials="0,1")
        assert status(run_id) == (mlflow_status, state)
    assert MlflowClient().get_run(run_id).data.tags["trials"] == "0,1"


def test_a_history_that_is_logged_again_stands_there_once(experiment_id):
    run_id = made(experiment_id)
    history = [(epoch, 1_000 + epoch, {"loss": 1 / epoch, "accuracy": 0.5}) for epoch in range(1, 4)]
    log_history(run_id, history[:2])
    log_history(run_id, history)
    log_history(run_id, history)
    assert steps(run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert steps(run_id, "accuracy") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert runs.logged_epochs(run_id, "loss") == {1, 2, 3}
    assert runs.logged_epochs(run_id, "nothing") == set()


def test_more_metrics_than_one_call_takes_are_all_logged(experiment_id):
    run_id = made(experiment_id)
    log_history(run_id, [(epoch, epoch, {"a": 0.0, "b": 1.0}) for epoch in range(1, 801)])
    for name in ("a", "b"):
        assert [step for step, _ in steps(run_id, name)] == list(range(1, 801))


def test_metrics_that_are_there_once_stay_there_once(experiment_id):
    run_id = made(experiment_id)
    log_final(run_id, {"test_loss": 0.25})
    log_final(run_id, {"test_loss": 0.25})
    assert steps(run_id, "test_loss") == [(0, 0.25)]


def test_what_a_user_logs_goes_to_the_active_run(experiment_id):
    run_id = made(experiment_id)
    with active(run_id, trials="5") as outcome:
        assert status(run_id) == ("RUNNING", "running")
        mlflow.log_text("hello", "note.txt")
        outcome.state = "paused"
    assert status(run_id) == ("SCHEDULED", "paused")
    assert mlflow.active_run() is None
    assert [file.path for file in MlflowClient().list_artifacts(run_id)] == ["note.txt"]
    assert MlflowClient().get_run(run_id).data.tags["trials"] == "5"


def test_an_active_run_that_is_left_without_a_word_was_interrupted(experiment_id):
    run_id = made(experiment_id)

    class Killed(BaseException):
        pass

    with pytest.raises(Killed), active(run_id):
        raise Killed
    assert status(run_id) == ("KILLED", "interrupted")
    assert mlflow.active_run() is None


def test_the_state_of_a_run_that_is_anothers_by_now_is_left_alone(experiment_id):
    run_id = made(experiment_id)
    with active(run_id) as outcome:
        set_state(run_id, "complete")  # by the other
        outcome.state = None
    assert status(run_id) == ("FINISHED", "complete")
    assert mlflow.active_run() is None


def test_the_machine_is_sampled_in_steps_that_go_on_after_a_kill(experiment_id, monkeypatch):
    """What is killed leaves its run RUNNING and says nothing more: as if its sampler had only stopped."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    run_id = made(experiment_id)
    name, count = "system/cpu_utilization_percentage", 0
    for _ in range(2):
        with active(run_id):
            wait_until(lambda count=count: len(steps(run_id, name)) > count, "a sample was logged")
        count = len(steps(run_id, name))
    assert [step for step, _ in steps(run_id, name)] == list(range(count))
    (run,) = find_runs(experiment_id, KEY)
    assert list(runs.histories([run])) == []  # the steps of these are no epochs
    assert len(list(runs.histories([run], [name]))) == count
