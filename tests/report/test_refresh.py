"""Bringing MLflow up to date, on a real database: only what is new is written, and no failure ends anything."""

import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from pipeline.report import keeping
from pipeline.report.keeping import ReportJob, kept_current
from pipeline.report.refresh import Refresher
from pipeline.signals import StopRequest
from pipeline.tracking import runs
from tests.integration.commands import wait_until
from tests.report.studies import SITE, study_of, trials


@pytest.fixture
def shown(experiment_id, tmp_path):
    """A study with its MLflow runs."""
    run_id = runs.ensure_run(experiment_id, name="s", key={"kind": "study"}, params={})
    given = trials()
    made = {}
    for number in {trial.user_attrs["configuration"] for trial in given}:
        key = {"kind": "configuration", "study_run": run_id, "configuration": str(number)}
        made[number] = runs.ensure_run(experiment_id, name=f"#{number:02d}", key=key, params={})
    for trial in given:
        trial.user_attrs = {**trial.user_attrs, "run_id": made[trial.user_attrs["configuration"]]}
    site = replace(SITE, experiment_id=experiment_id, run_id=run_id)
    return study_of(tmp_path, given, site), run_id, made


def note(run_id):
    return MlflowClient().get_run(run_id).data.tags.get(runs.NOTE)


def test_only_what_is_new_is_written(shown, monkeypatch):
    study, run_id, made = shown
    refresher, written = Refresher(study, storage=None), []
    describe = runs.describe

    def noted(run_id, text, **tags):
        written.append(run_id)
        describe(run_id, text, **tags)

    monkeypatch.setattr(runs, "describe", noted)
    refresher.pages()
    assert sorted(written) == sorted([run_id, *made.values()])
    assert all(note(one) for one in written)
    written.clear()
    refresher.pages()
    Refresher(study, storage=None).pages()  # another process finds what is there
    assert set(written) <= {run_id}  # which says when it was written
    points = MlflowClient().get_metric_history(run_id, "best/loss")
    assert [(point.step, point.value) for point in points] == [(19, 0.211111)]


def test_a_state_that_nobody_is_in_any_more_counts_none(shown):
    study, run_id, _ = shown
    refresher = Refresher(study, storage=None)
    refresher.pages()
    study.end(study.trials()[-1]._trial_id, trials()[5].state, "paused")
    refresher.pages()
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert (metrics["configurations/running"], metrics["configurations/paused"]) == (0.0, 2.0)


def test_everything_there_is_lies_on_the_study_run(shown):
    study, run_id, made = shown
    runs.log_text(made[3], "Traceback: <b>", "traceback.txt")
    Refresher(study, storage=None).everything()
    client = MlflowClient()
    found = {info.path for info in client.list_artifacts(run_id)}
    assert found == {"pictures", "report.html", "results.csv", "results.parquet", "segments.csv", "segments.parquet"}
    folder = mlflow.artifacts.download_artifacts(run_id=run_id)
    table, same = pd.read_parquet(f"{folder}/results.parquet"), pd.read_csv(f"{folder}/results.csv", index_col=0)
    assert list(table["state"]) == list(same["state"]) == ["complete", "complete", "paused", "failed", "running"]
    assert len(pd.read_parquet(f"{folder}/segments.parquet")) == 8
    assert "Traceback: &lt;b&gt;" in Path(folder, "report.html").read_text(encoding="utf-8")


def test_what_fails_is_said_once(shown, caplog):
    study, _, _ = shown
    job = ReportJob(study="none", url=study.url, told=None, tracking_uri=mlflow.get_tracking_uri(), every_s=1.0)
    keeper = keeping._Keeper(job)
    with caplog.at_level(logging.WARNING):
        keeper.pages(lambda: False)
        keeper.last(everything=True)
    (said,) = caplog.messages
    assert said.startswith(
        "what MLflow shows of study 'none' is not up to date: UsageError: --study none: no such study"
    )


def test_what_its_process_has_to_say_is_said_by_the_command(shown, caplog, capfd):
    study, _, _ = shown
    job = ReportJob(study="none", url=study.url, told=None, tracking_uri=mlflow.get_tracking_uri(), every_s=1e6)
    with (
        caplog.at_level(logging.WARNING),
        kept_current(job, multiprocessing.get_context("forkserver"), StopRequest()),
    ):
        pass
    (said,) = caplog.messages
    assert said.startswith("what MLflow shows of study 'none' is not up to date: UsageError: --study none")
    assert capfd.readouterr().err == "", "nothing is written past a view"


def test_its_process_refreshes_at_the_end_and_is_gone_then(shown):
    study, run_id, _ = shown
    job = ReportJob(study=study.name, url=study.url, told=None, tracking_uri=mlflow.get_tracking_uri(), every_s=1e6)
    with kept_current(job, multiprocessing.get_context("forkserver"), StopRequest()):
        assert note(run_id) is None
    assert note(run_id).startswith("**Running**")
    assert {info.path for info in MlflowClient().list_artifacts(run_id)} >= {"pictures", "report.html"}
    assert not multiprocessing.active_children()


def test_its_process_refreshes_while_others_work(shown):
    study, run_id, _ = shown
    job = ReportJob(study=study.name, url=study.url, told=None, tracking_uri=mlflow.get_tracking_uri(), every_s=0.1)
    stop = StopRequest()
    with kept_current(job, multiprocessing.get_context("forkserver"), stop):
        wait_until(lambda: note(run_id), "the page is there")
        stop.at_once = True  # nothing more is waited for
    assert not multiprocessing.active_children()


def test_who_stops_a_command_waits_for_the_pages_alone(shown, monkeypatch):
    monkeypatch.setattr(keeping, "STOPPED_S", 60.0)  # what it imports it has already in a command
    study, run_id, _ = shown
    job = ReportJob(study=study.name, url=study.url, told=None, tracking_uri=mlflow.get_tracking_uri(), every_s=1e6)
    stop = StopRequest()
    with kept_current(job, multiprocessing.get_context("forkserver"), stop):
        stop.ask("SIGTERM")
    assert note(run_id).startswith("**Running**")
    assert MlflowClient().list_artifacts(run_id) == []


def test_whoever_wants_none_gets_none(shown):
    study, run_id, _ = shown
    job = ReportJob(study=study.name, url=study.url, told=None, tracking_uri=mlflow.get_tracking_uri(), every_s=0.0)
    with kept_current(job, multiprocessing.get_context("forkserver"), StopRequest()):
        assert not multiprocessing.active_children()
    assert note(run_id) is None
