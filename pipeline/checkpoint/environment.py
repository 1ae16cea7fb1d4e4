"""What the bits of training depend on besides its state, and how it has changed."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.distributed as dist


@cache
def default_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def visible_devices() -> list[str]:
    """The CUDA devices that processes may be given, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device.strip() for device in given.split(",") if device.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def environment() -> dict[str, Any]:
    """torch, device, threads, processes that train together and flags, as a manifest records them."""
    device = default_device()
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as `threads: 1 -> 2, code: changed`; empty if a resume is exact.

    What only one of the two knows is not compared: it was recorded by another version of this file.
    """
    different = [name for name in recorded if name in now and recorded[name] != now[name]]
    return ", ".join(f"{name}: {_shown(recorded[name], now[name])}" for name in different)


def _shown(before: Any, after: Any) -> str:
    digests = all(isinstance(value, str) and len(value) == 64 for value in (before, after))
    return "changed" if digests else f"{before} -> {after}"
