"""State and manifest <-> the three files of a checkpoint. The manifest is written last and read first."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.checkpoint import codec, strict_json
from pipeline.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from pipeline.errors import CheckpointError, CorruptCheckpoint

TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "manifest.json"
NAMES = (TENSORS, STATE, MANIFEST)  # in the order of an upload
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_STATE_JSON_BYTES = 2**30


def save(folder: Path, state: Mapping[str, Any], manifest: Manifest) -> Manifest:
    """Writes `state` and the manifest, completed with digests and shapes, into `folder`; all of it synced.

    Raises EncodeError before anything is written, CheckpointError for a file that is there already or that
    cannot be written.
    """
    tree, tensors = codec.encode(dict(state))
    tensors = _apart(tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [name for name in NAMES if (folder / name).exists()]
        if present:
            raise CheckpointError(f"{folder / present[0]}: is there already; checkpoints are never overwritten")
        save_file(tensors, folder / TENSORS)
        _sync(folder / TENSORS)
        _write(folder / STATE, strict_json.dumps(tree))
        manifest = replace(
            manifest,
            files={name: _entry(folder / name) for name in (TENSORS, STATE)},
            tensors={name: _tensor_entry(tensor) for name, tensor in tensors.items()},
        )
        _write(folder / MANIFEST, manifest.to_json())
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the checkpoint cannot be written: {error}") from error
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`. Raises CorruptCheckpoint if there is none, or not a sound one."""
    size_bytes = _size(path)
    if size_bytes > MAX_MANIFEST_BYTES:
        raise CorruptCheckpoint(f"{path}: {size_bytes} bytes, expected at most {MAX_MANIFEST_BYTES}")
    return Manifest.from_json(_read(path))


def read_state(folder: Path, manifest: Manifest, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The state in `folder`, after every file was found to be what `manifest` says.

    Tensors on the CPU are mapped from the file (private, copied on write), so nothing is read twice.
    Raises CorruptCheckpoint if anything differs.
    """
    tensors = read_tensors(folder, manifest, device)
    if manifest.files[STATE].size_bytes > MAX_STATE_JSON_BYTES:
        raise CorruptCheckpoint(f"{folder / STATE}: larger than {MAX_STATE_JSON_BYTES} bytes")
    text = _read(folder / STATE)
    # The bytes that are parsed are the bytes that are digested.
    if FileEntry(size_bytes=len(text), blake3=blake3(text).hexdigest()) != manifest.files[STATE]:
        raise CorruptCheckpoint(f"{folder / STATE}: its size or digest is not what the manifest says")
    state = codec.decode(strict_json.loads(text, STATE), tensors)
    if type(state) is not dict:
        raise CorruptCheckpoint(f"{folder / STATE}: expected an object, found {type(state).__name__}")
    return state


def read_tensors(folder: Path, manifest: Manifest, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors as they are stored, by name. Raises CorruptCheckpoint if they are not the manifest's."""
    if set(manifest.files) != {TENSORS, STATE}:
        raise CorruptCheckpoint(f"{folder / MANIFEST}: names other files than {TENSORS} and {STATE}")
    verify_file(folder / TENSORS, manifest.files[TENSORS])
    try:
        tensors = load_file(folder / TENSORS, device=str(device))
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise CorruptCheckpoint(f"{folder / TENSORS}: {error}") from error
    found = {name: _tensor_entry(tensor) for name, tensor in tensors.items()}
    if found != dict(manifest.tensors):
        names = sorted(name for name in {*found, *manifest.tensors} if found.get(name) != manifest.tensors.get(name))
        raise CorruptCheckpoint(f"{folder / TENSORS}: not the manifest's tensors: {', '.join(names[:10])}")
    return tensors


def verify_file(path: Path, entry: FileEntry) -> None:
    """Raises CorruptCheckpoint if the file's size, looked at first, or its digest is not the manifest's."""
    size_bytes = _size(path)
    if size_bytes != entry.size_bytes:
        raise CorruptCheckpoint(f"{path}: expected {entry.size_bytes} bytes, found {size_bytes}")
    found = _entry(path)
    if found != entry:
        raise CorruptCheckpoint(f"{path}: expected BLAKE3 {entry.blake3}, found {found.blake3}")


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share memory with one before: the format holds each tensor by itself."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return result


def _tensor_entry(tensor: Tensor) -> TensorEntry:
    return TensorEntry(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def _entry(path: Path) -> FileEntry:
    try:
        digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        return FileEntry(size_bytes=path.stat().st_size, blake3=digest)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptCheckpoint(f"{path}: is not there") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _read(path: Path) -> bytes:
    """Its bytes. A disk that does not answer says nothing about the checkpoint: no CorruptCheckpoint."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CorruptCheckpoint(f"{path}: is not there") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="ascii", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
