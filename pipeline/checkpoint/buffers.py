"""Host memory for snapshots, allocated once and used again: fresh pages cost more than the copy into them."""

import threading

import torch
from torch import Tensor

from pipeline.checkpoint.shards import SharedMemory


class Arena:
    """Buffers for the tensors of one snapshot, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._buffers: list[tuple[object, Tensor | None]] = []  # each with the kind of tensor it is for
        self._next = 0
        self._shared: SharedMemory | None = None
        self._free = threading.Event()
        self._free.set()

    @property
    def is_free(self) -> bool:
        """Whether the snapshot that was taken here is needed no more."""
        return self._free.is_set()

    def begin(self) -> None:
        """Starts a snapshot; what the buffers held is lost."""
        assert self.is_free
        self._free.clear()
        self._next = 0

    def release(self) -> None:
        """The snapshot is needed no more. Any thread may say so."""
        self._free.set()

    def buffer_for(self, tensor: Tensor) -> Tensor | None:
        """Contiguous, of the same shape and dtype, on the CPU, pinned for one of CUDA. None unless `is_plain`."""
        index, self._next = self._next, self._next + 1
        kind = (type(tensor), tensor.dtype, tensor.layout, tensor.device, tensor.is_nested)
        if index < len(self._buffers) and self._buffers[index][0] == kind:
            buffer = self._buffers[index][1]
            if buffer is None or buffer.shape == tensor.shape:
                return buffer
        new = None
        if is_plain(tensor):
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        self._buffers[index : index + 1] = [(kind, new)]
        return new

    def shared(self, size_bytes: int) -> SharedMemory:
        """At least so many bytes that other processes see too, the same each time as long as they are enough."""
        if self._shared is None or self._shared.size_bytes < size_bytes:
            self._shared = None  # before there is another
            self._shared = SharedMemory(size_bytes)
        return self._shared


def is_plain(tensor: Tensor) -> bool:
    """Whether a copy into a buffer is all there is to a tensor; sparse and quantised ones are more."""
    known = type(tensor) in (Tensor, torch.nn.Parameter)
    return known and tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
