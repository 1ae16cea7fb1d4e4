"""Tensors of which each process of a trial has a part, as FSDP has them: brought together in memory that all see.

For a snapshot each process copies its own parts to where they belong in the whole, all at the same time; nothing goes
from one to another, and nothing lies whole on a device. So a checkpoint holds whole tensors, in the one file and under
the names that a model has that is not sharded: any number of processes can read it, each of which maps the file and
copies its own parts out. The processes of a trial are on one machine, whose memory and disk have to take the whole in
any case.
"""

import mmap
import os
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_ALIGNED = 64  # bytes; what a tensor begins at a multiple of


def is_sharded(value: object) -> bool:
    """Whether it is torch's DTensor, whose module takes long to load where nobody has one."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """The whole of a sharded tensor, gathered from all who have a part of it, who have to ask as well."""
    return tensor.full_tensor()  # type: ignore[no-any-return]


def own(tensor: Any) -> Tensor:
    """This process's part of it, or what was given."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def parted_like(live: Any, tensor: Any) -> Any:
    """A whole tensor as `live` has it: sharded, on its devices. Everything else as it is."""
    if not is_sharded(live) or is_sharded(tensor) or not isinstance(tensor, Tensor) or tensor.shape != live.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, live.device_mesh, live.placements, src_data_rank=None)  # each has the whole


class HeldBack:
    """Whether FSDP was told to sum gradients later (`set_requires_gradient_sync(False)`): what waits is in no state."""

    def __init__(self, objects: Iterable[object]) -> None:
        modules: Iterator[Any] = (part for value in objects if isinstance(value, nn.Module) for part in value.modules())
        states = (module._get_fsdp_state() for module in modules if hasattr(module, "_get_fsdp_state"))
        self._groups = [group for state in states for group in state._fsdp_param_groups]

    def __bool__(self) -> bool:
        return any(not (group.reduce_grads and group.all_reduce_grads) for group in self._groups)


class SharedMemory:
    """Memory that other processes of this user find by its `place`, for as long as this one keeps it.

    It is no file: /dev/shm may be too small (64 MB in a container), and a disk would be written to.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        descriptor = os.memfd_create("snapshot", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, size_bytes)
        self.place = f"/proc/{os.getpid()}/fd/{descriptor}"
        self.bytes = mmap.mmap(descriptor, size_bytes)


class Opened:
    """The same memories, as the other processes see them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], mmap.mmap] = {}  # by inode and size; a place may be used again

    def at(self, place: str, size_bytes: int) -> mmap.mmap:
        """The memory at this place, which is kept open together with the one that was asked for before."""
        descriptor = os.open(place, os.O_RDWR | os.O_CLOEXEC)
        try:
            key = (os.fstat(descriptor).st_ino, size_bytes)
            found = self._known.pop(key, None) or mmap.mmap(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        self._known = {**dict(list(self._known.items())[-1:]), key: found}
        return found


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory that the whole of all of them takes."""
    return sum(_padded(tensor) for tensor in tensors)


def brought_together(tensors: Iterable[Any], memory: mmap.mmap) -> Iterator[Tensor]:
    """Copies this process's part of each into the memory, and gives the whole, which is whole when others have as well.

    All of them call it with the same tensors, in the same order.
    """
    start = 0
    for tensor in tensors:
        padded = torch.frombuffer(memory, dtype=torch.uint8, count=_padded(tensor), offset=start)
        place = padded[: tensor.numel() * tensor.element_size()].view(tensor.dtype).reshape(tensor.shape)
        _copy_own(tensor, place)
        start += _padded(tensor)
        yield place


def _copy_own(tensor: Any, place: Tensor) -> None:
    from torch.distributed.tensor import Replicate, Shard

    if any(type(placement) not in (Shard, Replicate) for placement in tensor.placements):
        place.copy_(whole(tensor))  # its parts are sums, or do not lie side by side in it
        return
    for chunk in tensor.__create_chunk_list__():
        part = place
        for dimension, (begin, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            part = part.narrow(dimension, begin, length)
        part.copy_(tensor.to_local())


def _padded(tensor: Tensor) -> int:
    size_bytes = tensor.numel() * tensor.element_size()
    return max(_ALIGNED, -(-size_bytes // _ALIGNED) * _ALIGNED)
