"""A safetensors file, written as a stream: what is digested is what was given, not what a disk has made of it.

The library's own writer leaves no room for a digest on the way, and a second pass over a file of gigabytes costs
as much as the first. Files are read by the library (https://github.com/huggingface/safetensors, format).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from pipeline.checkpoint.manifest import FileEntry

_CHUNK_BYTES = 8 * 2**20
_SYNC_BYTES = 64 * 2**20  # the disk begins with these while the next are still being written
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes dense, contiguous CPU tensors to a new file and syncs it; returns its size and digest.

    Raises OSError.
    """
    digest, size_bytes, unsynced_bytes = blake3(), 0, 0
    # Hashing, writing and syncing all leave Python's lock alone, so they hide behind each other.
    with path.open("xb", buffering=0) as file, ThreadPoolExecutor(2, "checkpoint file") as beside:
        digesting = syncing = None
        for chunk in _chunks(tensors):
            if digesting is not None:
                digesting.result()
            digesting = beside.submit(digest.update, chunk)
            _write_all(file.fileno(), chunk)
            size_bytes += len(chunk)
            unsynced_bytes += len(chunk)
            if unsynced_bytes >= _SYNC_BYTES and (syncing is None or syncing.done()):
                if syncing is not None:
                    syncing.result()  # an error is told once, and fsync would not tell it again
                syncing, unsynced_bytes = beside.submit(os.fdatasync, file.fileno()), 0
        if syncing is not None:
            syncing.result()
        os.fsync(file.fileno())
    return FileEntry(size_bytes=size_bytes, blake3=digest.hexdigest())


def digest_tensors(tensors: Mapping[str, Tensor]) -> FileEntry:
    """What `write_tensors` would return, without a file."""
    digest, size_bytes = blake3(max_threads=blake3.AUTO), 0
    for chunk in _chunks(tensors):
        digest.update(chunk)
        size_bytes += len(chunk)
    return FileEntry(size_bytes=size_bytes, blake3=digest.hexdigest())


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    # Widest first, so that every tensor of a mapped file is aligned.
    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))
    yield memoryview(_header(ordered))
    for _, tensor in ordered:
        assert tensor.device.type == "cpu" and tensor.is_contiguous()
        if tensor.numel() == 0:
            continue
        flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        data = memoryview(flat)
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]


def _header(ordered: Iterable[tuple[str, Tensor]]) -> bytes:
    entries, start = {}, 0
    for name, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
