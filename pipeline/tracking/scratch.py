"""A tracking store for nothing but a while, so that code that logs can run and leaves nothing behind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from pipeline.tracking import runs, server

EXPERIMENT = "scratch"


def use(folder: Path) -> None:
    """From now on this process tracks into `folder`, which is begun when something is logged."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = uri  # for the processes that this one starts
    mlflow.set_tracking_uri(uri)


@contextmanager
def active_run(folder: Path, name: str) -> Iterator[None]:
    """The run of this name, new or continued, is the active one."""
    server.connect()
    client = MlflowClient()
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = (
        found.experiment_id
        if found is not None
        else client.create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
    )
    run_id = runs.ensure_run(experiment_id, name=name, key={"scratch": name}, params={})
    with runs.active(run_id) as outcome:
        yield
        outcome.state = "complete"
