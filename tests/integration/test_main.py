"""The whole job through MLflow, in a copy of the project whose path has a space and a letter beyond ASCII."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.integration.commands import ROOT, Workplace

ROWS = 90


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    size = rng.normal(size=ROWS)
    return pd.DataFrame(
        {
            "size": size,
            "pieces": rng.integers(0, 9, ROWS),
            "colour": rng.choice(["red", "blue"], ROWS),
            "kind": np.where(size + 0.1 * rng.normal(size=ROWS) > 0, "big", "small"),
        }
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """`mlflow run` of the entry point `main`, twice."""
    project = tmp_path_factory.mktemp("main") / "mon projet é"
    project.mkdir()
    for name in ("pipeline", "experiments", "MLproject", "conda.yaml", "requirements.txt"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, project / name)
    table().to_csv(project / "ma table.csv", index=False)
    workplace = Workplace(project)
    first = mlflow_run(project)
    runs = {run.info.run_id: run.to_dictionary() for run in workplace.runs()}
    second = mlflow_run(project)
    return SimpleNamespace(workplace=workplace, first=first, second=second, runs=runs, project=project)


def mlflow_run(project: Path) -> str:
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "PIPELINE_", "PYTHONPATH"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    parameters = ["data=ma table.csv", "target=kind", "configurations=4", "max-epochs=4"]
    found = subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "thaw"),
            *(part for parameter in parameters for part in ("-P", parameter)),
        ],
        cwd=project,
        env={**inherited, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    return found.stdout


def test_the_project_run_becomes_the_studys_run(job):
    (study,) = job.workplace.runs(kind="study")
    assert study.data.tags["mlflow.project.entryPoint"] == "main"
    assert (study.info.status, study.data.tags["state"]) == ("FINISHED", "complete")
    configurations = job.workplace.runs(kind="configuration")
    assert len(configurations) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in configurations} == {study.info.run_id}
    assert {run.data.tags["state"] for run in configurations} <= {"complete", "pruned"}


def test_run_again_it_says_that_all_is_done_and_changes_no_run(job):
    assert "is done: 4 configurations, nothing left to train" in job.second
    assert "(before)" in job.second
    now = {run.info.run_id: run.to_dictionary() for run in job.workplace.runs()}
    added = set(now) - set(job.runs)
    for run_id, run in job.runs.items():
        now[run_id]["info"].pop("end_time")  # the study's run was opened again and closed
        run["info"].pop("end_time")
        assert now[run_id] == run
    # The project run of the second time only points to the study.
    (study,) = job.workplace.runs(kind="study")
    (command,) = job.workplace.runs(kind="command")
    assert added == {command.info.run_id}
    assert command.data.tags["study_run"] == study.info.run_id
    assert command.data.tags["study"] == study.data.tags["study"]
    assert command.info.status == "FINISHED"


def test_the_best_is_evaluated_and_registered_exactly_once(job):
    (evaluation,) = job.workplace.runs(kind="evaluate")
    assert evaluation.info.status == "FINISHED"
    assert evaluation.data.metrics
    (study,) = job.workplace.runs(kind="study")
    versions = job.workplace.client.search_model_versions(f"name = '{study.data.tags['study']}'")
    assert [version.version for version in versions] == ["1"] or [version.version for version in versions] == [1]
    assert evaluation.data.tags["model_version"] == "1"
    (version,) = versions
    aliases = job.workplace.client.get_registered_model(version.name).aliases
    assert {alias: str(one) for alias, one in aliases.items()} == {"champion": "1", "challenger": "1"}
    (trained,) = [one for one in job.workplace.runs() if one.info.run_id == version.tags["trained_by"]]
    assert version.tags["checkpoint"] in {
        info.path.rpartition("/")[2] for info in job.workplace.client.list_artifacts(trained.info.run_id, "checkpoints")
    }
    assert f"/runs/{trained.info.run_id}/artifacts/checkpoints/{version.tags['checkpoint']}/" in version.description


def test_the_study_keeps_its_code_once(job):
    (study,) = job.workplace.runs(kind="study")
    client, run_id = job.workplace.client, study.info.run_id
    (folder,) = client.list_artifacts(run_id, "code")
    found = {info.path.removeprefix(f"{folder.path}/") for info in client.list_artifacts(run_id, folder.path)}
    assert found >= {"requirements.txt", "tabular.py"}


def test_no_run_is_left_running(job):
    assert {run.info.status for run in job.workplace.runs()} == {"FINISHED"}


@pytest.mark.filterwarnings("ignore")  # of what MLflow imports to load a model
def test_the_registered_model_takes_the_raw_tables_rows(job, monkeypatch):
    monkeypatch.chdir(job.project)
    (study,) = job.workplace.runs(kind="study")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(job.workplace.tracking_uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{study.data.tags['study']}/1")
        rows = table().drop(columns="kind")
        answer = model.predict(rows)
        again = model.predict(rows)
    finally:
        mlflow.set_tracking_uri(before)
    assert len(answer) == ROWS
    column = "kind" if isinstance(answer, pd.DataFrame) and "kind" in answer else None
    predicted = pd.Series(np.asarray(answer[column] if column else answer).ravel()).astype(str)
    assert set(predicted) <= {"big", "small"}
    assert (predicted.to_numpy() == table()["kind"].to_numpy()).mean() > 0.5
    assert np.array_equal(np.asarray(again), np.asarray(answer))


def test_the_last_lines_are_links_into_the_user_interface(job):
    (study,) = job.workplace.runs(kind="study")
    for output in (job.first, job.second):
        assert f"study:     http://127.0.0.1:5000/#/experiments/1/runs/{study.info.run_id}" in output
        assert "curves:    http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART" in output
        assert f"model:     http://127.0.0.1:5000/#/models/{study.data.tags['study']}/versions/1" in output
        store = f"sqlite:///{quote(str(job.project / 'mlflow.db'))}"  # MLflow's own words for it
        assert f"want the MLflow UI:  python -m mlflow ui --backend-store-uri {store}\n" in output
        assert "Traceback" not in output
        assert "Warning" not in output
