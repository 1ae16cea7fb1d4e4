"""What was written is read back, never overwritten, and refused with our own error if a byte differs."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint import (
    NAMES,
    FileEntry,
    Manifest,
    Position,
    TensorEntry,
    capture,
    capture_random,
    read_manifest,
    read_state,
    save,
)
from pipeline.checkpoint.files import STATE, TENSORS, _entry
from pipeline.errors import CheckpointError, CorruptCheckpoint, EncodeError
from tests.checkpoint.comparing import assert_same
from tests.checkpoint.training import small_model, step

BLANK = Manifest(position=Position(0, 1, 2), step=3, trial=4)


def _state():
    model = small_model()
    objects = {"model": model, "optimizer": torch.optim.NAdam(model.parameters())}
    step(objects)
    return {**capture(objects), "rng": capture_random(), "loop": {"mean": (1.5, np.float32(2))}}


@pytest.fixture
def written(tmp_path):
    state = _state()
    return tmp_path / "c", state, save(tmp_path / "c", state, BLANK)


def _read(folder):
    return read_state(folder, read_manifest(folder / "manifest.json"))


def test_a_state_is_read_as_it_was_written(written):
    folder, state, manifest = written
    assert read_manifest(folder / "manifest.json") == manifest
    assert_same(_read(folder), state)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert set(manifest.files) == {TENSORS, STATE}
    assert manifest.tensors["model.0.weight"] == TensorEntry(dtype="float32", shape=(8, 4))


def test_a_person_can_read_the_learning_rate(written):
    assert '"lr": 0.002' in (written[0] / STATE).read_text()


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        pytest.fail("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    save(tmp_path / "c", _state(), BLANK)
    _read(tmp_path / "c")


def test_equal_states_are_equal_files(tmp_path, written):
    _, state, manifest = written
    assert save(tmp_path / "again", state, BLANK) == manifest


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    whole = torch.arange(6.0)
    state = {"whole": whole, "again": whole, "part": whole[2:4], "turned": whole.reshape(2, 3).T, "none": whole[:0]}
    save(tmp_path / "c", state, BLANK)
    read = _read(tmp_path / "c")
    assert_same(read, state)
    read["whole"].zero_()
    assert_same(read["again"], whole)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_ever_overwritten(tmp_path, name):
    tmp_path.joinpath(name).write_text("mine")
    with pytest.raises(CheckpointError, match="never overwritten"):
        save(tmp_path, {"a": torch.ones(1)}, BLANK)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert tmp_path.joinpath(name).read_text() == "mine"


def test_a_value_that_cannot_be_saved_leaves_no_file(tmp_path):
    with pytest.raises(EncodeError):
        save(tmp_path / "c", {"a": object()}, BLANK)
    assert not (tmp_path / "c").exists()


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "file" / "c", {"a": 1}, BLANK)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_refused(written, name):
    folder = written[0]
    (folder / name).unlink()
    with pytest.raises(CorruptCheckpoint, match=f"{name}: is not there"):
        _read(folder)
    (folder / name).mkdir()
    with pytest.raises(CheckpointError):
        _read(folder)


def _mutate(data, rng):
    at = rng.randrange(len(data))
    run = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40)))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + run + data[at:]
    if kind == 3:
        return data[:at] + data[at + len(run) :]
    if kind == 4:
        return data + run
    if kind == 5:
        return data[:at] + bytes(len(run)) + data[at + len(run) :] + bytes(1)
    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_change_of_a_file_is_detected(written, name):
    folder = written[0]
    rng, original = random.Random(name), (folder / name).read_bytes()
    for _ in range(1700):  # of each file, more than 5,000 together
        (folder / name).write_bytes(_mutate(original, rng))
        with pytest.raises(CorruptCheckpoint):
            _read(folder)
    (folder / name).write_bytes(original)
    assert_same(_read(folder), written[1])


@pytest.mark.parametrize("name", [TENSORS, STATE])
def test_a_changed_file_with_a_matching_digest_raises_nothing_but_our_error(written, name):
    """As if someone had sealed a hostile file: the parsers themselves are tried."""
    folder, _, manifest = written
    rng, original = random.Random(name), (folder / name).read_bytes()
    header = int.from_bytes(original[:8], "little") + 8 if name == TENSORS else len(original)
    refused = 0
    for _ in range(300):
        changed = _mutate(original[:header], rng) + original[header:]
        (folder / name).unlink()  # a new file: the old one may still be mapped
        (folder / name).write_bytes(changed)
        sealed = replace(manifest, files={**manifest.files, name: _entry(folder / name)})
        try:
            read_state(folder, sealed)
        except CorruptCheckpoint:
            refused += 1
    assert refused > 250


def test_a_size_that_the_file_does_not_have_is_refused_before_it_is_read(written):
    folder, _, manifest = written
    sealed = {**manifest.files, TENSORS: FileEntry(size_bytes=2**62, blake3="0" * 64)}
    with pytest.raises(CorruptCheckpoint, match=f"expected {2**62} bytes"):
        read_state(folder, replace(manifest, files=sealed))


def test_a_header_that_declares_more_than_the_file_holds_is_refused(tmp_path):
    folder = tmp_path / "c"
    manifest = save(folder, {"a": torch.ones(4)}, BLANK)
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data.replace(b'"shape":[4]', b'"shape":[9]'))
    sealed = replace(
        manifest,
        files={**manifest.files, TENSORS: _entry(folder / TENSORS)},
        tensors={"a": TensorEntry(dtype="float32", shape=(9,))},
    )
    with pytest.raises(CorruptCheckpoint):
        read_state(folder, sealed)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.ones(4, dtype=torch.int32)},
        {"a": torch.ones(2, 2)},
        {"b": torch.ones(4)},
        {"a": torch.ones(4), "b": torch.ones(1)},
        {},
    ],
    ids=["dtype", "shape", "name", "more", "fewer"],
)
def test_tensors_other_than_the_manifests_are_refused(tmp_path, tensors):
    folder = tmp_path / "c"
    manifest = save(folder, {"a": torch.ones(4)}, BLANK)
    save_file(tensors, folder / TENSORS)
    sealed = replace(manifest, files={**manifest.files, TENSORS: _entry(folder / TENSORS)})
    with pytest.raises(CorruptCheckpoint, match="not the manifest's tensors"):
        read_state(folder, sealed)


def test_a_manifest_that_names_other_files_is_refused(written):
    folder, _, manifest = written
    shutil.copy(folder / STATE, folder / "other")
    for files in ({}, {**manifest.files, "../other": manifest.files[STATE]}, {"other": manifest.files[STATE]}):
        with pytest.raises(CorruptCheckpoint, match="names other files"):
            read_state(folder, replace(manifest, files=files))
