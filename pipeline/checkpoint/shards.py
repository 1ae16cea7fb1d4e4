"""Tensors of which each process of a trial has a part, as FSDP has them: gathered when saved, parted when loaded.

So a checkpoint holds whole tensors, in the one file and under the names that a model that is not sharded has, and goes
on in any number of processes. Whole is one tensor at a time, on rank 0's device; in the end all of them are in its
host memory. With the processes of a trial on one machine, they would be there in any case.
"""

from typing import Any

from torch import Tensor


def is_sharded(value: object) -> bool:
    """Whether it is torch's DTensor, whose module takes long to load where nobody has one."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """The whole of a sharded tensor, newly made, or what was given. All who have a part of it must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def own(tensor: Any) -> Tensor:
    """This process's part of it, or what was given."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def parted_like(live: Any, tensor: Any) -> Any:
    """A whole tensor as `live` has it: sharded, on its devices. Everything else as it is."""
    if not is_sharded(live) or is_sharded(tensor) or not isinstance(tensor, Tensor) or tensor.shape != live.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, live.device_mesh, live.placements, src_data_rank=None)  # each has the whole
