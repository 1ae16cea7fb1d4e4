"""Addresses in the MLflow UI that open the right view."""

import json
import shlex
from urllib.parse import quote

import mlflow

from pipeline.tracking.server import is_remote, shown

UI = "http://127.0.0.1:5000"
VIEW = "workflowType=machine_learning"  # else a fresh browser opens the view for language models


def base() -> str:
    """The UI's address: the tracking server's own, or where `ui_command` starts one."""
    return shown(mlflow.get_tracking_uri()).rstrip("/") if is_remote() else UI


def ui_command() -> str | None:
    """What starts the UI where the links lead, from any folder; None where a server has it."""
    if is_remote():
        return None
    return f"python -m mlflow ui --backend-store-uri {shlex.quote(shown(mlflow.get_tracking_uri()))}"


def run(experiment_id: str, run_id: str) -> str:
    """A run's own page."""
    return f"{base()}/#/experiments/{experiment_id}/runs/{run_id}?{VIEW}"


def configurations(experiment_id: str, study: str, monitor: str, *, ascending: bool) -> str:
    """The curves of a study's configurations, best first."""
    query = quote(f"tags.kind = 'configuration' and tags.study = '{study}'", safe="")
    order = quote(f"metrics.`{monitor}`", safe="")
    return (
        f"{base()}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&{VIEW}"
        f"&searchFilter={query}&orderByKey={order}&orderByAsc={json.dumps(ascending)}"
    )


def model(name: str, version: str) -> str:
    """A version of a registered model."""
    return f"{base()}/#/models/{quote(name, safe='')}/versions/{version}?{VIEW}"


def artifact(experiment_id: str, run_id: str, path: str) -> str:
    """An artifact of a run, previewed."""
    return f"{base()}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}?{VIEW}"


def within(link: str) -> str:
    """The same view from inside the UI, whatever address that is reached at."""
    return link[link.index("#") :]
