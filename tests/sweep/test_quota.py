"""The quota deletes what is needed least, and never what a configuration needs to go on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState

from pipeline.checkpoint import Best, Manifest, MlflowStore, Position, Report, save
from pipeline.errors import ThawError
from pipeline.experiment import Experiment, ExperimentFile
from pipeline.sweep.finish import evaluate_best
from pipeline.sweep.quota import shrink, stored_bytes
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site
from tests.sweep.trials import new_study

FLOATS = 5000  # 20 kB a checkpoint, next to which its two JSON files are little


@dataclass(frozen=True)
class Point:
    pass


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    return new_study(tmp_path, configurations=3, max_epochs=9, pruner="none")


@pytest.fixture
def trained(study: Study) -> Callable[..., MlflowStore]:
    """Trains the next configuration, as far as the study and the store can tell."""
    experiment = MlflowClient().create_experiment("quota")

    def train(values: list[float], ended: str) -> MlflowStore:
        lineage = next_segment(study)
        assert not isinstance(lineage, str)
        head = lineage.head
        run_id = MlflowClient().create_run(experiment).info.run_id
        store = MlflowStore(run_id)
        best: Best | None = None
        for epoch, value in enumerate(values, start=1):
            manifest = Manifest(position=Position(0, epoch, 0), step=epoch, trial=head.number)
            if best is None or value < best.value:
                best = Best(epoch=epoch, value=value, checkpoint=manifest.name)
            manifest = Manifest(
                position=Position(0, epoch, 0),
                step=epoch,
                trial=head.number,
                best=best,
                history=tuple(
                    Report(epoch=e, time_ms=e, seconds=1.0, metrics={"loss": v}) for e, v in enumerate(values, 1)
                ),
            )
            store.put(manifest.name, lambda folder, m=manifest: save(folder, {"a": torch.rand(FLOATS)}, m))
        assert best is not None
        progress = {
            "checkpoint": manifest.name,
            "epochs": len(values),
            "best": {"epoch": best.epoch, "value": best.value, "checkpoint": best.checkpoint},
        }
        for name, value in {"config": {}, "run_id": run_id, "progress": progress}.items():
            study.set(head._trial_id, name, value)
        states = {"paused": TrialState.PRUNED, "complete": TrialState.COMPLETE}
        if ended in states:
            study.end(head._trial_id, states[ended], ended, best.value)
        return store

    return train


def epochs(store: MlflowStore) -> list[int]:
    return [int(name[4:9]) for name in store.names()]


def test_what_fits_is_left_alone(study, trained):
    store = trained([0.5, 0.4, 0.3], "paused")
    shrink(study, 10**6)
    assert epochs(store) == [1, 2, 3]


def test_the_newest_of_what_can_go_on_and_the_best_of_all_stay_whatever_the_quota(study, trained, caplog):
    paused = trained([0.5, 0.4, 0.6, 0.7], "paused")
    complete = trained([0.3, 0.1, 0.2, 0.4], "complete")
    shrink(study, 1)
    assert epochs(paused) == [4]
    assert epochs(complete) == [2]
    assert "more than --keep-gb allows" in caplog.text


def test_what_is_needed_least_goes_first(study, trained):
    lesser = trained([0.5, 0.4, 0.6, 0.7, 0.8], "paused")
    better = trained([0.3, 0.1, 0.2, 0.4, 0.5], "complete")
    total = sum(stored_bytes(study).values())
    one = total // 10
    assert stored_bytes(study) == {0: sum(lesser.sizes().values()), 1: sum(better.sizes().values())}
    for dropped, left in (
        (1, ([2, 3, 4, 5], [1, 2, 3, 4, 5])),  # a rung that lies behind, of the lesser one first
        (2, ([2, 4, 5], [1, 2, 3, 4, 5])),
        (4, ([2, 4, 5], [2, 4, 5])),
        (5, ([4, 5], [2, 4, 5])),  # its best weights
        (6, ([5], [2, 4, 5])),  # the second that would serve
        (7, ([5], [2, 5])),
        (8, ([5], [2])),  # what a complete one could be extended from
    ):
        shrink(study, total - dropped * one + one // 2)
        assert (epochs(lesser), epochs(better)) == left


def test_the_best_weights_that_were_deleted_are_an_error_that_says_what_to_do(study, trained):
    lesser = trained([0.5, 0.4, 0.6, 0.7], "paused")
    trained([0.3, 0.1, 0.2, 0.4], "complete")
    site = Site(file="x.py", experiment_id="0", run_id="none", tables_run_id=None, tables={}, threads=1)
    study.set_attr("site", site.to_json())
    shrink(study, 1)
    assert epochs(lesser) == [4]
    experiment = Experiment(
        config=Point, train=lambda *_: None, evaluate=lambda *_: {}, monitor="loss", direction="minimize", max_epochs=9
    )
    file = ExperimentFile(path=Path("x.py"), experiment=experiment, sources=())
    with pytest.raises(
        ThawError, match=r"#00: checkpoint s0-e00002\S+, with its best weights, was deleted by --keep-gb"
    ):
        evaluate_best(study, file, 0)


def test_what_a_later_stage_reads_and_what_a_resume_would_start_from_stay(study, trained):
    store = trained([0.5, 0.4, 0.3], "paused")
    start = Manifest(position=Position(1, 0, 0), step=9, trial=0)
    store.put(start.name, lambda folder: save(folder, {"a": torch.rand(FLOATS)}, start))
    newest = store.names()[2]
    store.set_aside(newest, "it does not verify")
    shrink(study, 1)
    assert start.name in store.names()
    assert newest not in store.names()
    assert store.names()[0].startswith("s0-e00002")


def test_who_trains_just_now_is_left_alone(study, trained):
    running = trained([0.5, 0.4, 0.3], "running")
    shrink(study, 1)
    assert epochs(running) == [1, 2, 3]
