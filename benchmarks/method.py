"""What is measured, the same for every way to take a checkpoint."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.training import Training


@dataclass(frozen=True, kw_only=True)
class Times:
    """One checkpoint, in seconds.

    Attributes:
        stall_s: how long training is held: its thread or, on a CUDA device, what it has queued there.
        total_s: from the call until the checkpoint is there.
    """

    stall_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to take a checkpoint.

    Attributes:
        take: takes one of a training that has just made a step; its files go to the folder it is given, which is empty.
        is_synced: whether a checkpoint that is there survives a power cut.
    """

    name: str
    take: Callable[[Training, Path], Times]
    is_synced: bool


def timed(begin: Callable[[], Callable[[], object] | None]) -> Times:
    """`begin` holds the training; what it returns, if anything, waits for the rest."""
    synchronise()
    began_s = time.perf_counter()
    finish = begin()
    synchronise()
    stall_s = time.perf_counter() - began_s
    if finish is not None:
        finish()
    return Times(stall_s=stall_s, total_s=time.perf_counter() - began_s)


def synchronise() -> None:
    """Returns when a CUDA device has done all that training has queued there; what others have does not count."""
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, with what it queues on a CUDA device."""
    synchronise()
    began_s = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - began_s
