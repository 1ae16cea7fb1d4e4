"""What the machine can do with as many bytes, without a checkpoint: the limits to compare with."""

import os
from pathlib import Path

import torch
from blake3 import blake3

from benchmarks.method import seconds
from benchmarks.training import Training
from pipeline.checkpoint import capture_random


class Limits:
    """Two buffers of a size, touched, and what can be done with them; all results are seconds.

    The first is where training's tensors are; from a CUDA device the second is pinned, for the bus's full speed.
    """

    def __init__(self, size_bytes: int, device: str) -> None:
        self._from = torch.ones(size_bytes, dtype=torch.uint8, device=device)
        self._to = torch.zeros(size_bytes, dtype=torch.uint8, pin_memory=self._from.is_cuda)

    def memcpy(self) -> float:
        """From memory to memory, with the threads that torch has, or over the bus."""
        return seconds(lambda: self._to.copy_(self._from, non_blocking=True))

    def calls(self, training: Training) -> float:
        """The calls that no exact snapshot in Python is without: state_dicts, random states, a copy of each tensor."""
        start = 0
        buffers = []
        for tensor in training.tensors().values():
            buffers.append(self._to[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
            start += tensor.nbytes

        def call() -> None:
            for buffer, tensor in zip(buffers, training.tensors().values(), strict=True):
                buffer.copy_(tensor, non_blocking=True)
            capture_random()

        return seconds(call)

    def write(self, folder: Path) -> float:
        """To a new file, synced."""
        return seconds(lambda: self._write(folder / "raw"))

    def digest(self) -> float:
        """BLAKE3 with all threads."""
        return seconds(lambda: blake3(memoryview(self._to.numpy()), max_threads=blake3.AUTO).digest())

    def _write(self, path: Path) -> None:
        data = memoryview(self._to.numpy())
        with path.open("xb", buffering=0) as file:
            while data:
                data = data[os.write(file.fileno(), data) :]
            os.fsync(file.fileno())


def read_and_digest(path: Path) -> float:
    """A file into memory, and BLAKE3 of it with all threads; seconds."""
    return seconds(lambda: blake3(path.read_bytes(), max_threads=blake3.AUTO).digest())
