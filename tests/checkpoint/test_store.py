"""One contract for every store: committed means whole, names lead nowhere else, nothing is overwritten."""

import logging
import re
from pathlib import Path

import pytest
import torch

import pipeline.checkpoint
from pipeline.checkpoint import (
    NAMES,
    FolderStore,
    Manifest,
    MlflowStore,
    Position,
    load,
    load_newest,
    read_manifest,
    save,
)
from pipeline.checkpoint.retention import kept
from pipeline.errors import CheckpointError, CorruptCheckpoint, UsageError
from tests.checkpoint.comparing import assert_same
from tests.checkpoint.training import files_of


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """A real tracking store; MLflow migrates a database once for this file."""
    import mlflow

    folder = tmp_path_factory.mktemp("tracking")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("checkpoints", artifact_location=(folder / "an artifact folder").as_uri())
    return client, experiment


def _new_run(tracking):
    client, experiment = tracking
    return client.create_run(experiment).info.run_id


@pytest.fixture(params=["folder", "mlflow", "mlflow downloaded"])
def store(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    tracking = request.getfixturevalue("tracking")
    store = MlflowStore(_new_run(tracking), tracking[0].tracking_uri)
    if request.param == "mlflow downloaded":
        monkeypatch.setattr(store, "_here", None)  # as if the artifacts were far away
    return store


def _written(tmp_path, epoch, trial=0, value=0.0):
    manifest = Manifest(position=Position(0, epoch, 0), step=epoch, trial=trial)
    folder = tmp_path / f"written-{manifest.name}"
    return save(folder, {"a": torch.full((3,), value)}, manifest), folder


def _put(store, tmp_path, epoch, trial=0):
    manifest, folder = _written(tmp_path, epoch, trial, value=float(epoch))
    store.put(manifest.name, files_of(folder))
    return manifest.name


def _spoil(store, name, file="state.safetensors"):
    path = store.get(name) / file
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_what_is_put_is_named_and_loaded(store, tmp_path):
    assert store.names() == []
    names = [_put(store, tmp_path, *place) for place in [(2, 0), (1, 0), (2, 5), (10, 6)]]
    assert store.names() == [names[1], names[0], names[2], names[3]]
    manifest, state = load(store, names[2])
    assert manifest.position == Position(0, 2, 0)
    assert manifest.trial == 5
    assert_same(state, {"a": torch.full((3,), 2.0)})
    assert sorted(path.name for path in store.get(names[0]).iterdir()) == sorted(NAMES)


def test_a_second_put_is_refused_and_the_first_stays(store, tmp_path):
    name = _put(store, tmp_path, 1)
    _, other = _written(tmp_path / "other", 1, value=9.0)
    with pytest.raises(CheckpointError, match="never overwritten"):
        store.put(name, files_of(other))
    assert_same(load(store, name)[1], {"a": torch.full((3,), 1.0)})


def test_a_folder_without_its_manifest_is_not_put(store, tmp_path):
    manifest, folder = _written(tmp_path, 1)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: is not there"):
        store.put(manifest.name, files_of(folder))
    assert store.names() == []


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "", ".", "s0-e00003-b000017-t000012/../../x", "s0-e1-b0-t0", "s0-e00003-b000017-t000012\n"],
)
def test_a_name_that_is_none_is_refused_everywhere(store, tmp_path, name):
    _, folder = _written(tmp_path, 1)
    for call in (
        lambda: store.put(name, files_of(folder)),
        lambda: store.get(name),
        lambda: store.set_aside(name, "why"),
    ):
        with pytest.raises(UsageError, match="no checkpoint's name"):
            call()
    assert store.names() == []


def test_a_checkpoint_that_is_not_there_is_refused(store):
    with pytest.raises(CorruptCheckpoint, match="is not there"):
        store.get("s0-e00003-b000017-t000012")


def test_what_is_set_aside_stays_but_is_named_no_more(store, tmp_path):
    first, second = _put(store, tmp_path, 1), _put(store, tmp_path, 2)
    store.set_aside(second, "a digest differs\nnaïve")
    store.set_aside(second, "again")
    assert store.names() == [first]
    assert read_manifest(store.get(second) / "manifest.json").name == second


@pytest.mark.parametrize("file", NAMES)
def test_a_checkpoint_that_does_not_verify_is_set_aside_and_the_one_before_serves(store, tmp_path, caplog, file):
    names = [_put(store, tmp_path, epoch) for epoch in (1, 2, 3)]
    _spoil(store, names[2], file)
    with caplog.at_level(logging.WARNING):
        found = load_newest(store, names)
    assert found is not None
    assert found[0].name == names[1]
    assert_same(found[1], {"a": torch.full((3,), 2.0)})
    assert store.names() == names[:2]
    assert f"{names[2]} does not verify and is set aside" in caplog.text


def test_no_checkpoint_that_verifies_is_none(store, tmp_path):
    assert load_newest(store, []) is None
    names = [_put(store, tmp_path, epoch) for epoch in (1, 2)]
    for name in names:
        _spoil(store, name)
    assert load_newest(store, [*names, "s0-e00009-b000000-t000000"]) is None
    assert store.names() == []


def test_only_the_names_that_count_are_tried(store, tmp_path):
    names = [_put(store, tmp_path, epoch) for epoch in (1, 2, 3)]
    found = load_newest(store, names[1::-1])
    assert found is not None
    assert found[0].name == names[1]


def test_a_manifest_of_another_checkpoint_is_refused(store, tmp_path):
    _, folder = _written(tmp_path, 1)
    store.put("s0-e00002-b000000-t000000", files_of(folder))
    with pytest.raises(CorruptCheckpoint, match="that of s0-e00001-b000000-t000000"):
        load(store, "s0-e00002-b000000-t000000")


def test_an_upload_that_was_cut_off_is_no_checkpoint_and_can_be_repeated(tracking, tmp_path, monkeypatch):
    run_id = _new_run(tracking)
    manifest, folder = _written(tmp_path, 1)
    for file in NAMES[:2]:
        tracking[0].log_artifact(run_id, folder / file, f"checkpoints/{manifest.name}")
    store = MlflowStore(run_id, tracking[0].tracking_uri)
    monkeypatch.setattr(store, "_here", None)
    assert store.names() == []
    with pytest.raises(CorruptCheckpoint):
        store.get(manifest.name)
    store.put(manifest.name, files_of(folder))
    assert store.names() == [manifest.name]


def test_a_file_that_vanished_from_a_far_store_makes_the_checkpoint_corrupt(tracking, tmp_path, monkeypatch):
    store = MlflowStore(_new_run(tracking), tracking[0].tracking_uri)
    name = _put(store, tmp_path, 1)
    (store.get(name) / "state.json").unlink()
    monkeypatch.setattr(store, "_here", None)
    with pytest.raises(CorruptCheckpoint, match=r"state\.json: is not there"):
        store.get(name)


def test_the_manifest_is_uploaded_last(tracking, tmp_path, monkeypatch):
    store = MlflowStore(_new_run(tracking), tracking[0].tracking_uri)
    monkeypatch.setattr(store, "_here", None)
    manifest, folder = _written(tmp_path, 1)
    sent, real = [], store._repository.log_artifact
    monkeypatch.setattr(store._repository, "log_artifact", lambda *args: (sent.append(args[0]), real(*args)))
    store.put(manifest.name, files_of(folder))
    assert [Path(path).name for path in sent] == ["state.safetensors", "state.json", "manifest.json"]


def test_local_artifacts_are_read_where_they_are(tracking, tmp_path):
    store = MlflowStore(_new_run(tracking), tracking[0].tracking_uri)
    name = _put(store, tmp_path, 1)
    assert store.get(name).is_dir()
    assert store._downloads is None


def test_setting_aside_is_a_tag_on_the_run(tracking, tmp_path):
    run_id = _new_run(tracking)
    store = MlflowStore(run_id, tracking[0].tracking_uri)
    name = _put(store, tmp_path, 1)
    store.set_aside(name, "a digest differs")
    assert tracking[0].get_run(run_id).data.tags[f"checkpoint_set_aside.{name}"] == "a digest differs"


def test_a_put_that_fails_half_way_leaves_nothing_in_the_folder(tmp_path):
    store = FolderStore(tmp_path / "store")
    manifest, _ = _written(tmp_path, 1)

    def write(folder):
        (folder / "state.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        store.put(manifest.name, write)
    assert list((tmp_path / "store").iterdir()) == []


def test_mlflow_is_known_in_the_store_alone():
    package = Path(pipeline.checkpoint.__file__).parent
    imports = re.compile(r"^\s*(import|from)\s+(mlflow|optuna)", re.MULTILINE)
    files = sorted(package.glob("*.py"))
    assert [path.name for path in files if imports.search(path.read_text())] == ["store.py"]
    assert not any("pickle" in line for path in files for line in path.read_text().splitlines() if "import" in line)


def test_what_is_not_to_be_kept_is_deleted(store, tmp_path):
    names = [_put(store, tmp_path, *place) for place in [(1, 0), (2, 0), (3, 1), (4, 1)]]
    store.keep_only([names[1], names[3]], upto_trial=1)
    assert store.names() == [names[1], names[3]]
    load(store, names[3])
    with pytest.raises(CorruptCheckpoint):
        load(store, names[0])


def test_what_later_trials_wrote_is_not_deleted(store, tmp_path):
    names = [_put(store, tmp_path, *place) for place in [(1, 0), (2, 3)]]
    store.keep_only([], upto_trial=2)
    assert store.names() == names[1:]


def test_what_was_set_aside_stays(store, tmp_path):
    name = _put(store, tmp_path, 1)
    store.set_aside(name, "it was spoiled")
    store.keep_only([], upto_trial=9)
    assert (store.get(name) / "manifest.json").exists()


def test_uploads_that_were_cut_short_are_collected(tmp_path, tracking):
    folder, run_id = tmp_path / "store", _new_run(tracking)
    cut = folder / ".s0-e00001-b000000-t000003.x8s_kq2"
    cut.mkdir(parents=True)
    (cut / "state.json").write_text("{}")
    FolderStore(folder).keep_only([], upto_trial=3)
    assert list(folder.iterdir()) == []

    client = tracking[0]
    client.log_text(run_id, "{}", "checkpoints/s0-e00001-b000000-t000003/state.json")
    MlflowStore(run_id, client.tracking_uri).keep_only([], upto_trial=3)
    assert client.list_artifacts(run_id, "checkpoints") == []


def test_the_last_two_the_best_and_the_pinned_are_kept():
    assert kept(["a", "b", "c", "d", "e"], best="b", pinned=["a"]) == {"a", "b", "d", "e"}
    assert kept(["a"], best=None, pinned=[]) == {"a"}
