"""MLflow runs: one for the study, one for each configuration for its whole life.

Every function can be repeated: what was cut short by a kill is found again by its tags and completed.
"""

import getpass
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from pipeline.errors import UsageError

# Our word for how a run stands -> MLflow's status.
STATUS = {
    "running": "RUNNING",
    "paused": "SCHEDULED",
    "interrupted": "KILLED",
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
}
METRICS_PER_CALL = 1000  # MLflow's limit of a batch
RUNS_PER_CALL = 100
EPOCH_S = "time/epoch_s"  # a metric: the seconds that each epoch was trained
SYSTEM = "system/"  # what the metrics begin with that MLflow samples by itself; their steps are no epochs
NOTE = "mlflow.note.content"  # the tag that the UI shows as a run's description


def check_exists(run_id: str) -> None:
    """Raises UsageError if there is no such run."""
    try:
        MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise UsageError(f"{run_id}: no such MLflow run") from error


def find_run(experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """The oldest run that bears all these tags."""
    return next(iter(find_runs(experiment_id, tags)), None)


def find_runs(experiment_id: str, tags: Mapping[str, str]) -> list[Run]:
    """All runs that bear all these tags, oldest first."""
    query = " and ".join(f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items())
    client, token = MlflowClient(), None
    found: list[Run] = []
    while True:
        page = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"], page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def ensure_run(
    experiment_id: str,
    *,
    name: str,
    key: Mapping[str, str],
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    parent: str | None = None,
    source: str | None = None,
    adopt: str | None = None,
) -> str:
    """The id of the run that bears the tags `key`; created if there is none.

    `source` is the file that the UI shows as what was run. `adopt` is a run that may become it instead of a
    new one: the one that `mlflow run` has created.
    """
    found = find_run(experiment_id, key)
    client = MlflowClient()
    parents = {MLFLOW_PARENT_RUN_ID: parent} if parent is not None else {}
    wanted = {**(tags or {}), **parents, MLFLOW_RUN_NAME: name, MLFLOW_USER: _user()}
    if source is not None:
        wanted |= {MLFLOW_SOURCE_NAME: source, MLFLOW_SOURCE_TYPE: "LOCAL"}
    if found is not None:
        run_id = str(found.info.run_id)
    elif adopt is not None:
        run_id = adopt
    else:
        # The key is set with the creation, so that a run cut short here is found again.
        run_id = client.create_run(experiment_id, tags={**wanted, **key}, run_name=name).info.run_id
    # One that was created just now has its tags, and no parameters yet.
    known = client.get_run(run_id).data if found is not None or adopt is not None else None
    new_tags = {n: v for n, v in {**wanted, **key}.items() if known is not None and known.tags.get(n) != v}
    new_params = {n: v for n, v in params.items() if known is None or n not in known.params}
    client.log_batch(
        run_id,
        params=[Param(n, str(v)) for n, v in new_params.items()],
        tags=[RunTag(n, v) for n, v in new_tags.items()],
    )
    return run_id


def set_state(run_id: str, state: str, **tags: str) -> None:
    """Sets how a run stands, in our words and in MLflow's, and any further tags."""
    client = MlflowClient()
    client.log_batch(run_id, tags=[RunTag("state", state), *(RunTag(n, v) for n, v in tags.items())])
    if state == "running":
        client.update_run(run_id, status=STATUS[state])
    else:
        client.set_terminated(run_id, STATUS[state])


def is_reported(metric: str) -> bool:
    """Whether a metric is one of the training's own, rather than what is measured of it, or of the machine."""
    return metric != EPOCH_S and not metric.startswith(SYSTEM)


def log_history(run_id: str, reports: Iterable[tuple[int, int, Mapping[str, float]]]) -> None:
    """Logs metrics of epochs, as (epoch, time in ms, metrics), exactly once however often it is repeated.

    MLflow appends whatever it is given, but takes a point with the same name, step, time and value for the same
    point. The times come from the checkpoint, so a repetition is the same.
    """
    points = [
        Metric(name, value, time_ms, epoch) for epoch, time_ms, metrics in reports for name, value in metrics.items()
    ]
    client = MlflowClient()
    for start in range(0, len(points), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=points[start : start + METRICS_PER_CALL])


def log_final(run_id: str, metrics: Mapping[str, float]) -> None:
    """Logs metrics that are there once; a repetition logs the same points, at the time the run began."""
    client = MlflowClient()
    start_ms = client.get_run(run_id).info.start_time
    client.log_batch(run_id, metrics=[Metric(n, v, start_ms, 0) for n, v in metrics.items()])


def name_run(run_id: str, name: str, tags: Mapping[str, str]) -> None:
    """Names a run that was created by someone else, and tags it."""
    MlflowClient().update_run(run_id, name=name)
    set_tags(run_id, tags)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    MlflowClient().log_batch(run_id, tags=[RunTag(n, v) for n, v in tags.items()])


def describe(run_id: str, text: str, **tags: str) -> None:
    """Sets a run's description, in Markdown, and further tags."""
    set_tags(run_id, {NOTE: text, **tags})


def log_now(run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """Logs how metrics stand just now."""
    now_ms = int(time.time() * 1000)
    MlflowClient().log_batch(run_id, metrics=[Metric(n, v, now_ms, step) for n, v in metrics.items()])


def metrics_of(run_id: str) -> dict[str, float]:
    """How a run's metrics stand."""
    return dict(MlflowClient().get_run(run_id).data.metrics)


def log_file(run_id: str, file: Path, folder: str | None = None) -> None:
    """Keeps a file as an artifact of the run, in place of one that was there; whoever looks sees one or the other."""
    MlflowClient().log_artifact(run_id, str(file), folder)


def read_text(run_id: str, file: str) -> str | None:
    """The text of an artifact; None where there is no such one."""
    client = MlflowClient()
    if file not in [info.path for info in client.list_artifacts(run_id)]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, file, folder)).read_text(encoding="utf-8", errors="replace")


def logged_epochs(run_id: str, metric: str) -> set[int]:
    """The steps of a metric that MLflow already has."""
    return {point.step for point in MlflowClient().get_metric_history(run_id, metric)}


def histories(found: Iterable[Run], metrics: Collection[str] = ()) -> Iterator[tuple[str, str, int, float]]:
    """Every point of these runs' metrics, of all that were reported or of those named: run id, metric, step, value.

    A database is asked for many runs at once, as MLflow's own server does; a server, run by run.
    """
    having: dict[str, list[str]] = {}
    for run in found:
        for metric in run.data.metrics:
            if metric in metrics if metrics else is_reported(metric):
                having.setdefault(metric, []).append(run.info.run_id)
    client = MlflowClient()
    bulk = getattr(client._tracking_client.store, "get_metric_history_bulk", None)
    for metric, run_ids in having.items():
        if bulk is None:
            for run_id in run_ids:
                yield from (
                    (run_id, metric, point.step, point.value) for point in client.get_metric_history(run_id, metric)
                )
            continue
        for start in range(0, len(run_ids), RUNS_PER_CALL):
            points = bulk(run_ids[start : start + RUNS_PER_CALL], metric, None)
            yield from ((one.run_id, metric, one.step, one.value) for one in points)


class Outcome:
    """How a run stands when its active time ends; interrupted until something else is known.

    Attributes:
        state: None if the run is another process's by now, and its state is not for this one to set.
        tags: what else is known then.
    """

    def __init__(self) -> None:
        self.state: str | None = "interrupted"
        self.tags: Mapping[str, str] = {}


def _once(call: Callable[[], object]) -> object:
    return call()


@contextmanager
def active(run_id: str, until_done: Callable[[Callable[[], object]], object] = _once, **tags: str) -> Iterator[Outcome]:
    """Makes it the active run, so that `mlflow.log_figure(...)` in user code goes where one expects.

    `until_done` makes the calls to MLflow, each of which can be repeated.
    """
    until_done(lambda: set_tags(run_id, {"state": "running", **tags}))
    until_done(lambda: mlflow.start_run(run_id=run_id))
    outcome = Outcome()
    try:
        yield outcome
    except Exception:
        outcome.state = "failed" if outcome.state is not None else None
        raise
    finally:
        while (other := mlflow.active_run()) is not None and other.info.run_id != run_id:
            _end_active("FINISHED", until_done)  # left open by the user's code
        if outcome.state is None:
            _end_active(str(until_done(lambda: MlflowClient().get_run(run_id).info.status)), until_done)
        else:
            last = {"state": outcome.state, **outcome.tags}
            until_done(lambda: set_tags(run_id, last))
            _end_active(STATUS[outcome.state], until_done)


def _end_active(status: str, until_done: Callable[[Callable[[], object]], object]) -> None:
    run = mlflow.active_run()
    assert run is not None
    try:
        mlflow.end_run(status)
    except MlflowException:  # it is no longer active by then, only the server does not know
        until_done(lambda: MlflowClient().set_terminated(run.info.run_id, status))


def log_text(run_id: str, text: str, file: str) -> None:
    MlflowClient().log_text(run_id, text, file)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _quoted(value: str) -> str:
    """A value in a filter; MLflow knows two quotation marks and no escape."""
    return f'"{value}"' if "'" in value else f"'{value}'"
