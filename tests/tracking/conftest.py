"""A tracking database for the tests here; each gets an experiment of its own."""

import itertools

import mlflow
import pytest

from pipeline.tracking import server

COUNT = itertools.count()


@pytest.fixture(scope="package")
def tracking(tmp_path_factory):
    """A tracking database in a folder with a space and an accent, as the one that is used."""
    folder = tmp_path_factory.mktemp("tracking") / "à b"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    server.connect()
    yield folder
    mlflow.set_tracking_uri(before)


@pytest.fixture
def experiment_id(tracking):
    folder = tracking / f"artifacts {next(COUNT)}"
    return mlflow.MlflowClient().create_experiment(folder.name, artifact_location=str(folder))
