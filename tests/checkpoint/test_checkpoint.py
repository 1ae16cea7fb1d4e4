"""A checkpoint is opened, looked at, loaded in part and exported, and nothing in the store changes."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint import (
    Best,
    Checkpoint,
    FolderStore,
    Manifest,
    MlflowStore,
    Position,
    Report,
    capture,
    capture_random,
    save,
)
from pipeline.errors import CheckpointError, CorruptCheckpoint, MismatchError, UsageError
from tests.checkpoint.comparing import assert_same
from tests.checkpoint.training import files_of, small_model, step


def _objects():
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 2)})
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "generator": torch.Generator()}


def _train(objects):
    for parameter in objects["model"].parameters():
        parameter.grad = torch.rand_like(parameter)
    objects["optimizer"].step()


def _fill(store, tmp_path):
    """Two epochs, of which the first is the best; and the states."""
    objects, states, history, best = _objects(), [], (), None
    for epoch in (1, 2):
        _train(objects)
        metrics = {"val_loss": float(epoch), "accuracy": 0.5} if epoch == 2 else {"val_loss": 1.0}
        history = (*history, Report(epoch=epoch, time_ms=epoch, seconds=0.5, metrics=metrics))
        best = best or Best(epoch=1, value=1.0, checkpoint="s0-e00001-b000000-t000003")
        states.append({**capture(objects), "rng": capture_random()})
        manifest = Manifest(position=Position(0, epoch, 0), step=epoch, trial=3, history=history, best=best)
        save(tmp_path / f"w{epoch}", states[-1], manifest)
        store.put(manifest.name, files_of(tmp_path / f"w{epoch}"))
    return states


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run", _fill(FolderStore(tmp_path / "run" / "checkpoints"), tmp_path)


def test_a_checkpoint_opens_by_latest_best_position_and_name(run):
    folder, _ = run
    assert Checkpoint.open(folder).position == Position(0, 2, 0)
    assert Checkpoint.open(str(folder), "best").name == "s0-e00001-b000000-t000003"
    assert Checkpoint.open(folder, Position(0, 1, 0)).name == "s0-e00001-b000000-t000003"
    assert Checkpoint.open(folder, "s0-e00001-b000000-t000003").position == Position(0, 1, 0)
    assert Checkpoint.open(folder / "checkpoints").position == Position(0, 2, 0)


@pytest.mark.parametrize("which", [Position(0, 5, 0), "s0-e00009-b000000-t000003", "../x", "newest"])
def test_a_checkpoint_that_is_not_there_is_a_usage_error(run, which):
    with pytest.raises(UsageError, match="no checkpoint"):
        Checkpoint.open(run[0], which)


def test_a_run_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="neither"):
        Checkpoint.open(tmp_path / "absent")
    with pytest.raises(UsageError, match="no checkpoint there"):
        Checkpoint.open(tmp_path)


def test_a_checkpoint_opens_by_its_step(run):
    folder, _ = run
    assert Checkpoint.open(folder, 1).position == Position(0, 1, 0)
    assert Checkpoint.open(folder, 2).position == Position(0, 2, 0)
    with pytest.raises(UsageError, match="no checkpoint at step 3; there are 1, 2"):
        Checkpoint.open(folder, 3)


def test_metrics_and_history_are_those_that_were_reported(run):
    checkpoint = Checkpoint.open(run[0])
    assert checkpoint.metrics == {"val_loss": 2.0, "accuracy": 0.5}
    history = checkpoint.history
    assert history.index.name == "epoch"
    assert list(history.index) == [1, 2]
    assert list(history["val_loss"]) == [1.0, 2.0]
    assert history["accuracy"].isna().tolist() == [True, False]


def test_a_notebook_shows_where_a_checkpoint_stands_and_what_is_in_it(run):
    checkpoint = Checkpoint.open(run[0])
    facts = f"val_loss 2, accuracy 0.5, tensors {len(checkpoint.manifest.tensors)} ("
    assert repr(checkpoint).startswith(f"<Checkpoint {checkpoint.name}: stage 0, epoch 2, batch 0, step 2, {facts}")
    assert f"<caption>Checkpoint {checkpoint.name}</caption><tr><th>stage</th><td>0</td></tr>" in (
        checkpoint._repr_html_()
    )


def test_a_checkpoint_before_the_first_report_has_no_history(tmp_path):
    manifest = Manifest(position=Position(), step=0, trial=0)
    save(tmp_path / "w", {}, manifest)
    FolderStore(tmp_path / "run").put(manifest.name, files_of(tmp_path / "w"))
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.metrics == {}
    assert len(checkpoint.history) == 0
    with pytest.raises(UsageError, match="no best"):
        Checkpoint.open(tmp_path / "run", "best")


def test_tensors_are_chosen_by_pattern(run):
    folder, states = run
    checkpoint = Checkpoint.open(folder)
    chosen = checkpoint.tensors(include="model.*", exclude=["*.bias"])
    assert set(chosen) == {"model.backbone.weight", "model.head.weight"}
    assert_same(chosen["model.head.weight"], states[1]["model"]["head.weight"])
    assert "optimizer.state.head.weight.exp_avg" in checkpoint.tensors()


def test_everything_is_loaded_into_live_objects(run):
    folder, states = run
    objects = _objects()
    Checkpoint.open(folder, "best").load_into(**objects)
    loaded = capture(objects)
    for name in objects:
        assert_same(loaded[name], states[0][name])
    assert loaded["grad"] == {}  # a warm start has no pending gradients


@pytest.mark.parametrize("pattern", ["backbone.*", "model.backbone.*", ["backbone.weight", "backbone.bias"]])
def test_a_chosen_part_is_loaded_into_another_architecture(run, pattern):
    folder, states = run
    other = torch.nn.ModuleDict({"backbone": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 7)})
    before = capture({"model": other})["model"]
    Checkpoint.open(folder).load_into(model=other, include=pattern)
    after = capture({"model": other})["model"]
    assert_same(after["backbone.weight"], states[1]["model"]["backbone.weight"])
    assert_same(after["head.weight"], before["head.weight"])


def test_a_part_that_does_not_fit_is_refused(run):
    checkpoint = Checkpoint.open(run[0])
    other = torch.nn.ModuleDict({"backbone": torch.nn.Linear(4, 5)})
    before = capture({"model": other})
    with pytest.raises(MismatchError, match=r"model\.backbone\.weight: expected float32 \[5, 4\]"):
        checkpoint.load_into(model=other, include="backbone.*")
    with pytest.raises(MismatchError, match="nothing matches"):
        checkpoint.load_into(model=other, include="backbon.*")
    with pytest.raises(UsageError, match="include"):
        checkpoint.load_into(generator=torch.Generator(), include="backbone.*")
    assert_same(capture({"model": other}), before)


def test_weights_are_exported_for_use_without_this_project(run, tmp_path):
    folder, states = run
    checkpoint = Checkpoint.open(folder)
    checkpoint.export_weights(tmp_path / "weights.safetensors")
    model = _objects()["model"]
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert_same(capture({"model": model})["model"], states[1]["model"])
    with pytest.raises(CheckpointError, match="is there already"):
        checkpoint.export_weights(tmp_path / "weights.safetensors")


def test_weights_of_several_modules_are_exported_under_their_names(tmp_path):
    one, two = small_model(), small_model()
    objects = {"model": one, "ema": two, "optimizer": torch.optim.SGD(one.parameters(), lr=0.1)}
    step(objects)
    manifest = Manifest(position=Position(), step=0, trial=0)
    save(tmp_path / "w", capture(objects), manifest)
    FolderStore(tmp_path / "run").put(manifest.name, files_of(tmp_path / "w"))
    Checkpoint.open(tmp_path / "run").export_weights(tmp_path / "weights.safetensors")
    names = set(load_file(tmp_path / "weights.safetensors"))
    assert names == {f"{owner}.{name}" for owner in ("model", "ema") for name in one.state_dict()}


def test_a_spoilt_checkpoint_is_refused_and_stays_where_it_is(run):
    folder, _ = run
    checkpoint = Checkpoint.open(folder)
    path = folder / "checkpoints" / checkpoint.name / "state.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for use in (checkpoint.tensors, lambda: checkpoint.load_into(**_objects())):
        with pytest.raises(CorruptCheckpoint):
            use()
    assert Checkpoint.open(folder).name == checkpoint.name


def test_a_checkpoint_of_an_mlflow_run_opens_by_its_id(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    uri, before = f"sqlite:///{tmp_path}/mlflow.db", mlflow.get_tracking_uri()
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    states = _fill(MlflowStore(run_id, uri), tmp_path)
    mlflow.set_tracking_uri(uri)
    try:
        checkpoint = Checkpoint.open(run_id, "best")
        assert_same(checkpoint.tensors("model.head.bias"), {"model.head.bias": states[0]["model"]["head.bias"]})
    finally:
        mlflow.set_tracking_uri(before)
