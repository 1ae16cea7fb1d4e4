"""Tracking for nothing but a while: a store, so that code that logs can run, or a run in the store that is used."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

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


@contextmanager
def passing_run(artifacts: Path | None = None) -> Iterator[tuple[str, str]]:
    """A run where commands log to, which is deleted afterwards with its artifacts: its id, and where those are.

    Where nothing was logged yet it is in an experiment of its own, which goes as well; `artifacts` is where that has
    them, by default where the server says. Of a database that is reached without a server nothing is left; a server
    keeps both among what is deleted.
    """
    client, given = MlflowClient(), server.existing_experiment()
    name = f"check-{uuid.uuid4().hex}"
    experiment_id = given or client.create_experiment(
        name, artifact_location=None if artifacts is None else artifacts.as_uri()
    )
    store: Any = client._tracking_client.store  # what deletes for good is for `mlflow gc`
    run = client.create_run(experiment_id, run_name=name)
    repository: Any = get_artifact_repository(run.info.artifact_uri)
    try:
        yield run.info.run_id, run.info.artifact_uri
        repository.delete_artifacts("checkpoints")
    except BaseException:
        with suppress(Exception):  # what has failed may fail again, and says why
            repository.delete_artifacts("checkpoints")
        raise
    finally:
        client.delete_run(run.info.run_id)
        if hasattr(store, "_hard_delete_run"):
            store._hard_delete_run(run.info.run_id)
        if given is None:
            client.delete_experiment(experiment_id)
            if hasattr(store, "_hard_delete_experiment"):
                store._hard_delete_experiment(experiment_id)
        _remove_empty(run.info.artifact_uri)


def _remove_empty(artifact_uri: str) -> None:
    """Folders that stay when what was in them is deleted, where they are on this machine."""
    uri = urlparse(artifact_uri)
    if uri.scheme in ("", "file"):
        folder = Path(unquote(uri.path))
        for one in (folder, *folder.parents[:3]):
            with suppress(OSError):  # it is not empty, or never was there
                one.rmdir()
