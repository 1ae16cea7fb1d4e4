"""SIGKILL at each point of a checkpoint's way, the first and a later time: always a checkpoint, always the bits."""

import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import MlflowStore, load
from tests.integration.commands import Workplace, assert_each_step_once, assert_same_training
from tests.integration.in_process import in_process, open_quick, work_on

EPOCHS = 9  # of quick.py
LATER = 2  # time at which the second process is killed


@dataclass(frozen=True, kw_only=True)
class Point:
    """Before or after a call of a function of the project, or of what it calls.

    Attributes:
        function: where it is found.
        when: "before" or "after".
        only: which calls count, by their arguments.
        each: this one of so many calls that belong to one checkpoint.
        far: whether the artifacts are treated as if they lay on another machine.
    """

    function: str
    when: str
    only: Callable[..., bool] = lambda *_: True
    each: int = 1
    far: bool = False


def _file(name: str) -> Callable[..., bool]:
    return lambda *arguments: any(Path(str(one)).name == name for one in arguments[:3])


POINTS = {
    "before the snapshot": Point(function="pipeline.checkpoint.snapshots:Snapshots.take", when="before"),
    "in the middle of the snapshot": Point(
        function="pipeline.checkpoint.buffers:Arena.buffer_for", when="after", each=5
    ),
    "after the snapshot": Point(function="pipeline.checkpoint.snapshots:Snapshots.take", when="after"),
    "before the copy beside training": Point(function="pipeline.checkpoint.snapshots:_copy_all", when="before"),
    "after the copy beside training": Point(function="pipeline.checkpoint.snapshots:_copy_all", when="after"),
    "before the tensors": Point(function="pipeline.checkpoint.files:write_tensors", when="before"),
    "in the middle of the tensors": Point(function="pipeline.checkpoint.tensor_file:_write_all", when="after", each=4),
    "after the tensors": Point(function="pipeline.checkpoint.files:write_tensors", when="after"),
    "before the state": Point(function="pipeline.checkpoint.files:_write", when="before", only=_file("state.json")),
    "after the state": Point(function="pipeline.checkpoint.files:_write", when="after", only=_file("state.json")),
    "before the manifest": Point(
        function="pipeline.checkpoint.files:_write", when="before", only=_file("manifest.json")
    ),
    "after the manifest": Point(function="pipeline.checkpoint.files:_write", when="after", only=_file("manifest.json")),
    "before the folder has its name": Point(function="pipeline.checkpoint.store:_complete", when="after"),
    "after the folder has its name": Point(function="pipeline.checkpoint.store:sync_folder", when="before"),
    "before the study knows": Point(
        function="pipeline.sweep.study:Study.set", when="before", only=lambda *a: "progress" in a
    ),
    "after the study knows": Point(
        function="pipeline.sweep.study:Study.set", when="after", only=lambda *a: "progress" in a
    ),
    "after the report": Point(function="pipeline.sweep.study:Study.report", when="after"),
    "before the metrics": Point(function="pipeline.tracking.runs:log_history", when="before"),
    "after the metrics": Point(function="pipeline.tracking.runs:log_history", when="after"),
    "before the retention": Point(function="pipeline.checkpoint.store:FolderStore.keep_only", when="before"),
    "in the retention, after the manifest": Point(
        function="pathlib:Path.unlink", when="after", only=_file("manifest.json")
    ),
    "in the retention, before the folder": Point(function="pathlib:Path.rmdir", when="before"),
    "after the retention": Point(function="pipeline.checkpoint.store:FolderStore.keep_only", when="after"),
    **{
        f"{when} the upload of {file}": Point(
            function="mlflow.store.artifact.local_artifact_repo:LocalArtifactRepository.log_artifact",
            when=when,
            only=_file(file),
            far=True,
        )
        for file in ("state.safetensors", "state.json", "manifest.json")
        for when in ("before", "after")
    },
    "in the retention of a far store, after the manifest": Point(
        function="mlflow.store.artifact.local_artifact_repo:LocalArtifactRepository.delete_artifacts",
        when="after",
        only=_file("manifest.json"),
        far=True,
    ),
}


def _work(folder: Path, name: str, point: str | None, time: int, results: Connection) -> None:
    """Works on a study until nothing is left, or dies at a point the `time`-th time it gets there."""
    from pipeline.checkpoint import snapshots
    from pipeline.sweep import saving

    snapshots._LATE_BYTES = 0  # this model is small, and yet every tensor is to be copied beside training
    saving._is_promised = lambda *_: True  # no snapshot gives way to a newer one, so that there are as many each time
    saving.LOG_EVERY_S = 0.0  # and as many calls to MLflow
    if point is not None:
        _arm(POINTS[point], time)
    if point is not None and POINTS[point].far:
        MlflowStore._here = None  # type: ignore[assignment]
    work_on(folder, name)
    results.send(None)


def _arm(point: Point, time: int) -> None:
    module, _, path = point.function.partition(":")
    *owners, attribute = path.split(".")
    owner: Any = importlib.import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    real, left = getattr(owner, attribute), (time - 1) * point.each + min(point.each, 2)

    def armed(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if point.only(*arguments):
            left -= 1
        dies = left == 0 and point.only(*arguments)
        if dies and point.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, armed)


def _study(point: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in point)


@pytest.fixture(scope="module")
def undisturbed(new_workplace) -> Workplace:
    """A folder with a study for each point, and the study `whole`, which was trained."""
    place = new_workplace("points")
    in_process(open_quick, place.folder, ["whole", *map(_study, POINTS)], 1, "none")
    in_process(_work, place.folder, "whole", None, 0)
    return place


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_the_commit_it_goes_on_from_a_checkpoint_that_verifies(undisturbed, point):
    place, name = undisturbed, _study(point)
    for time in (1, LATER):
        in_process(_work, place.folder, name, point, time, code=-signal.SIGKILL)  # else it was never reached
        (lineage,) = place.study(name).lineages().values()
        if lineage.progress["checkpoint"] is not None:
            assert lineage.run_id is not None
            load(MlflowStore(lineage.run_id, place.tracking_uri), lineage.progress["checkpoint"])
    in_process(_work, place.folder, name, None, 0)
    found = place.trained(study=name)
    assert_same_training(found, place.trained(study="whole"))
    assert_each_step_once(found, EPOCHS)
    # Nothing is left of what was begun.
    store = MlflowStore(found.run.info.run_id, place.tracking_uri)
    assert sorted(store.sizes()) == sorted(store.names())
