"""Reaching MLflow: where it is, that it answers, and that its database stands before workers use it."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.databases import created_whole, sqlite_file, sqlite_url
from pipeline.errors import ThawError

EXPERIMENT = "thaw"
ANSWER_TIMEOUT_S = 10
AWAY = {429, 502, 503, 504}  # what a server, or a proxy before it, answers while it cannot serve


def connect(to: str | None = None) -> str:
    """Makes tracking ready, there if a URI is given, and returns the id of the MLflow experiment to log to.

    It is the one that `mlflow run` or MLFLOW_EXPERIMENT_NAME chose, else the one named `thaw`.

    Raises:
        ThawError: the tracking server does not answer, or its store refuses.
    """
    if to is not None:
        mlflow.set_tracking_uri(to)
    file = sqlite_file(uri())
    with _reaching():
        if file is None:
            return _experiment_id()
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # two processes that migrate a fresh database at once crash
            if not file.exists():
                _create(file)
            experiment_id = _experiment_id()
            with sqlite3.connect(file) as database:
                database.execute("PRAGMA journal_mode=WAL")  # stays; readers no longer block writers
            return experiment_id


def existing_experiment() -> str | None:
    """The id of the experiment that `connect` would log to, if it is there by now. Raises: ThawError, as `connect`."""
    with _reaching():
        given = os.environ.get("MLFLOW_EXPERIMENT_ID")
        found = MlflowClient().get_experiment(given) if given else MlflowClient().get_experiment_by_name(_name())
        return None if found is None else str(found.experiment_id)


def artifact_folder() -> Path | None:
    """Where the artifacts of that experiment are, if that is a folder of this machine."""
    experiment_id = existing_experiment()
    if experiment_id is None:
        return None
    uri = urlsplit(MlflowClient().get_experiment(experiment_id).artifact_location)
    return Path(unquote(uri.path)) if uri.scheme in ("", "file") else None


def wants_login() -> bool:
    """Whether the server lets nobody in who does not say who he is."""
    _check_answer(uri())
    with requests.Session() as nobody:
        nobody.trust_env = False  # a .netrc would say it
        address = f"{shown(uri()).rstrip('/')}/api/2.0/mlflow/experiments/search"
        answer = nobody.post(address, json={"max_results": 1}, timeout=ANSWER_TIMEOUT_S)
        return answer.status_code == requests.codes.unauthorized


@contextmanager
def _reaching() -> Iterator[None]:
    """Raises ThawError, on one line, for what goes wrong where tracking is reached for the first time."""
    # Not where a person reads lines: bars of downloads that take milliseconds.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # And lines with a run's address, for each run; the commands print theirs once.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Retries would draw from python's own random state, which is the training's.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    # Seconds instead of a minute: who has patience, and another place for what is to be kept, is to know soon.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    # Alembic and MLflow log every migration of a fresh database as if it were news.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    at = uri()
    try:
        _check_answer(at)
        yield
    except (MlflowException, OSError, sqlite3.Error, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        is_refused = isinstance(error, MlflowException) and _status(error) == requests.codes.unauthorized
        remedy = "_USERNAME and MLFLOW_TRACKING_PASSWORD" if is_refused else "_URI"
        raise ThawError(f"tracking server {shown(at)}: {reason}; set MLFLOW_TRACKING{remedy}") from error


def _status(error: MlflowException) -> int:
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def sample_system() -> None:
    """From now on MLflow samples the machine while a run is active here, and goes on with the run's steps."""
    mlflow.enable_system_metrics_logging()  # type: ignore[no-untyped-call]


def refusal(error: Exception) -> str | None:
    """What MLflow had to say, on one line; None for an error that is not MLflow's."""
    if not isinstance(error, MlflowException):
        return None
    return f"tracking server {shown(uri())}: {' '.join(str(error).split())}"


def uri() -> str:
    """Where tracking is, as a worker is told."""
    return str(mlflow.get_tracking_uri())


def is_away(error: Exception) -> bool:
    """Whether it says of MLflow's server that it did not answer, or not now: no fault of who called."""
    if not isinstance(error, MlflowException):
        return False
    reason = error.__cause__ or error.__context__
    return isinstance(reason, requests.RequestException) or _status(error) in AWAY


def folder() -> Path | None:
    """The folder of the tracking database, if it is a file."""
    file = sqlite_file(uri())
    return None if file is None else file.parent


def is_remote() -> bool:
    """Whether tracking is a server, which has the UI itself."""
    return uri().startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """The tracking URI as it may be shown: without user and password."""
    parts = urlsplit(uri)
    if parts.password is None and parts.username is None:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _create(file: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with created_whole(file) as new:
        # The artifact root is the one that MLflow takes by itself.
        store = SqlAlchemyStore(sqlite_url(new), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
        store.engine.dispose()


def _check_answer(uri: str) -> None:
    """One quick request: MLflow's own retries would hold a wrong address against the user for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_TIMEOUT_S)
    except requests.RequestException as error:
        raise ThawError(
            f"tracking server {shown(uri)} does not answer ({type(error).__name__}); "
            "start it, or set MLFLOW_TRACKING_URI to one that runs"
        ) from error


def _experiment_id() -> str:
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given is not None:
        return given
    client = MlflowClient()
    found = client.get_experiment_by_name(_name())
    return found.experiment_id if found is not None else client.create_experiment(_name())


def _name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
