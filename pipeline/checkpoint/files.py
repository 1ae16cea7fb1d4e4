"""State and manifest <-> the three files of a checkpoint. The manifest is written last and read first."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.checkpoint import codec, strict_json
from pipeline.checkpoint.manifest import FROZEN, STATE, TENSORS, FileEntry, Manifest, TensorEntry
from pipeline.checkpoint.tensor_file import digest_tensors, write_tensors
from pipeline.errors import CheckpointError, CorruptCheckpoint

MANIFEST = "manifest.json"
FILES = (FROZEN, TENSORS, STATE, MANIFEST)  # in the order of an upload
NAMES = (TENSORS, STATE, MANIFEST)  # those that every checkpoint has
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_STATE_JSON_BYTES = 2**30
FROZEN_BYTES = 2**20  # fewer are not worth a file of their own

Locate = Callable[[str, str], Path]  # a checkpoint's name and a file's -> where that lies


def save(
    folder: Path,
    state: Mapping[str, Any],
    manifest: Manifest,
    *,
    frozen: Collection[str] = (),
    parent: Manifest | None = None,
) -> Manifest:
    """Writes `state` and the manifest, completed with digests and shapes, into `folder`; all of it synced.

    `frozen` names tensors that training is not expected to change: they get a file of their own, which is left out and
    referred to if `parent`, another checkpoint of the same store, has the same.
    Raises EncodeError before anything is written, CheckpointError for a file that is there already or that
    cannot be written.
    """
    tree, tensors = codec.encode(dict(state))
    apart = {name: tensors[name] for name in frozen if name in tensors}
    if sum(tensor.nbytes for tensor in apart.values()) < FROZEN_BYTES:
        apart = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [name for name in FILES if (folder / name).exists()]
        if present:
            raise CheckpointError(f"{folder / present[0]}: is there already; checkpoints are never overwritten")
        files = {TENSORS: write_tensors(folder / TENSORS, {n: t for n, t in tensors.items() if n not in apart})}
        if apart:
            files[FROZEN] = _save_frozen(folder, apart, parent)
        files[STATE] = _write(folder / STATE, strict_json.dumps(tree))
        manifest = replace(
            manifest,
            files=files,
            tensors={name: _tensor_entry(tensor) for name, tensor in tensors.items()},
        )
        _write(folder / MANIFEST, manifest.to_json())
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: the checkpoint cannot be written: {error}") from error
    return manifest


def _save_frozen(folder: Path, tensors: Mapping[str, Tensor], parent: Manifest | None) -> FileEntry:
    known = parent.files.get(FROZEN) if parent is not None else None
    if parent is not None and known is not None:
        found = digest_tensors(tensors)
        if (found.size_bytes, found.blake3) == (known.size_bytes, known.blake3):
            return replace(found, at=known.at or parent.name)
    return write_tensors(folder / FROZEN, tensors)


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`. Raises CorruptCheckpoint if there is none, or not a sound one."""
    size_bytes = _size(path)
    if size_bytes > MAX_MANIFEST_BYTES:
        raise CorruptCheckpoint(f"{path}: {size_bytes} bytes, expected at most {MAX_MANIFEST_BYTES}")
    return Manifest.from_json(_read(path))


def read_state(
    folder: Path, manifest: Manifest, device: str | torch.device = "cpu", elsewhere: Locate | None = None
) -> dict[str, Any]:
    """The state in `folder`, after every file was found to be what `manifest` says.

    `elsewhere` finds a file that the checkpoint shares with another one.
    Tensors on the CPU are mapped from the file (private, copied on write), so nothing is read twice.
    Raises CorruptCheckpoint if anything differs.
    """
    tensors = read_tensors(folder, manifest, device, elsewhere)
    if manifest.files[STATE].size_bytes > MAX_STATE_JSON_BYTES:
        raise CorruptCheckpoint(f"{folder / STATE}: larger than {MAX_STATE_JSON_BYTES} bytes")
    text = _read(folder / STATE)
    # The bytes that are parsed are the bytes that are digested.
    if _entry_of(text) != manifest.files[STATE]:
        raise CorruptCheckpoint(f"{folder / STATE}: its size or digest is not what the manifest says")
    state = codec.decode(strict_json.loads(text, STATE), tensors)
    if type(state) is not dict:
        raise CorruptCheckpoint(f"{folder / STATE}: expected an object, found {type(state).__name__}")
    return state


def read_tensors(
    folder: Path, manifest: Manifest, device: str | torch.device = "cpu", elsewhere: Locate | None = None
) -> dict[str, Tensor]:
    """The tensors as they are stored, by name. Raises CorruptCheckpoint if they are not the manifest's."""
    if set(manifest.files) - {FROZEN} != {TENSORS, STATE}:
        raise CorruptCheckpoint(f"{folder / MANIFEST}: names other files than {TENSORS}, {FROZEN} and {STATE}")
    tensors: dict[str, Tensor] = {}
    for name in [name for name in (TENSORS, FROZEN) if name in manifest.files]:
        entry = manifest.files[name]
        path = folder / name
        if entry.at is not None:
            if elsewhere is None:
                raise CorruptCheckpoint(f"{path}: lies in {entry.at}, which is out of reach here")
            path = elsewhere(entry.at, name)
        verify_file(path, entry)
        try:
            tensors |= load_file(path, device=str(device))
        except (SafetensorError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise CorruptCheckpoint(f"{path}: {error}") from error
    found = {name: _tensor_entry(tensor) for name, tensor in tensors.items()}
    if found != dict(manifest.tensors):
        names = sorted(name for name in {*found, *manifest.tensors} if found.get(name) != manifest.tensors.get(name))
        raise CorruptCheckpoint(f"{folder}: not the manifest's tensors: {', '.join(names[:10])}")
    return tensors


def verify_file(path: Path, entry: FileEntry) -> None:
    """Raises CorruptCheckpoint if the file's size, looked at first, or its digest is not the manifest's."""
    size_bytes = _size(path)
    if size_bytes != entry.size_bytes:
        raise CorruptCheckpoint(f"{path}: expected {entry.size_bytes} bytes, found {size_bytes}")
    found = _entry(path)
    if found.blake3 != entry.blake3:
        raise CorruptCheckpoint(f"{path}: expected BLAKE3 {entry.blake3}, found {found.blake3}")


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _write(path: Path, text: str) -> FileEntry:
    data = text.encode("ascii")
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _entry_of(data)


def _entry_of(data: bytes) -> FileEntry:
    return FileEntry(size_bytes=len(data), blake3=blake3(data).hexdigest())
