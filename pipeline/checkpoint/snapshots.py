"""Snapshots of tracked objects that training hardly waits for.

Parameters and an optimizer's state are changed by `optimizer.step` alone, so their copy may go on during the next
forward and backward pass, while `step` waits for it (as in Mohan et al., CheckFreq, FAST'21). Whether
a training keeps to that is seen, not believed: the first snapshot is copied at once, and compared bit by bit with what
the next `step` finds. Afterwards `Tensor._version` is a tripwire for changes in place. It is no proof (fused optimizers
don't move it), but what is not changed by `step`, buffers first of all, is always copied at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.checkpoint.buffers import Arena, is_plain
from pipeline.checkpoint.capture import Names, capture, sharded
from pipeline.checkpoint.codec import tensor_name
from pipeline.checkpoint.shards import Opened, brought_together, is_sharded, size_of, whole
from pipeline.errors import CheckpointError

log = logging.getLogger(__name__)
Share = Callable[[Any], Any]  # what rank 0 gives it, on every rank
Pair = tuple[Tensor, Tensor]  # a buffer and the live tensor that belongs into it
_LATE_BYTES = 2**16  # smaller ones are copied sooner than put on a list


class Torn(CheckpointError):
    """Training has changed what was still being copied: this snapshot is of no moment at all."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What it took to write a snapshot: the writing thread's processor time, and the time from begin to end."""

    cpu_s: float
    wall_s: float


class Taken:
    """The state of the tracked objects at one moment, in buffers that are given back by `release`.

    Attributes:
        state: as `capture` gives it; whole only after `wait`.
        torn: whether it never will be.
        frozen: names of tensors that training is not expected to change.
        stall_s: how long training has waited for it.
        written: what writing it took; None before that is over.
    """

    def __init__(self, arena: Arena) -> None:
        self.state: dict[str, Any] = {}
        self.torn = False
        self.frozen: frozenset[str] = frozenset()
        self.stall_s = 0.0
        self.written: Written | None = None
        self.release = arena.release
        self._late: list[tuple[Tensor, Tensor, int]] = []  # buffer, live tensor, its version
        self._copied: _Copied | None = None
        self._settled = threading.Event()

    def settle(self) -> None:
        """For the thread that trains: returns when the copy is over and what was copied may change."""
        if self._settled.is_set():
            return
        began_s = time.perf_counter()
        whole = False
        try:
            if self._copied is not None:
                self._copied.before_change()
            whole = all(tensor._version == version for _, tensor, version in self._late)
        finally:
            self.torn = not whole
            self.stall_s += time.perf_counter() - began_s
            self._late.clear()
            self._settled.set()

    def wait(self) -> None:
        """For every other thread: returns when the state is whole, after `settle`. Raises Torn if it is not."""
        self._settled.wait()
        if self.torn:
            raise Torn("weights or optimizer state were changed in place before the next optimizer step")
        if self._copied is not None:
            self._copied.wait()


class SnapshotParts:
    """What the processes do that train along while the first one takes a snapshot: copy their parts of what is sharded.

    `share` is as in `Snapshots`, on another rank.
    """

    def __init__(self, objects: Mapping[str, object], share: Share) -> None:
        self._objects = objects
        self._share = share
        self._opened = Opened()

    def take(self, *, inside: bool = False, at_once: bool = False) -> Taken:
        """Returns when that is done. What it gives has no state; the arguments are rank 0's to use."""
        parts = sharded(self._objects, Names(self._objects))
        if parts:
            place, size_bytes = self._share(None)
            with torch.no_grad():
                for _ in brought_together(parts, self._opened.at(place, size_bytes)):
                    pass
        return Taken(Arena())

    def close(self) -> None:
        """Forgets the memory."""
        self._opened = Opened()


class Snapshots:
    """Takes snapshots of the same objects, again and again, in the thread that trains them.

    There is memory for two: before a third is taken, one of them must have been released.

    Of several processes of a trial, which `share` tells, each other has to `take` its parts of what is sharded at the
    same time; what this one gives is whole when all of them have.
    """

    def __init__(self, objects: Mapping[str, object], share: Share | None = None) -> None:
        self._objects = objects
        self._share = share
        self._arenas = (Arena(), Arena())
        optimizers = [value for value in objects.values() if isinstance(value, Optimizer)]
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step)
            for optimizer in optimizers
            if hasattr(optimizer, "_optimizer_step_pre_hooks")  # not one that left out torch's own __init__
        ]
        self._stepped: set[Optimizer] = set()  # since the last snapshot
        # Whether the training allows an overlap, as was seen: at the ends of epochs (False) and inside them (True).
        self._allows: dict[bool, bool] = {}
        self._taken_inside = False
        self._seen: list[Pair] = []  # buffer and live tensor, to be compared
        self._last: Taken | None = None
        self._beside = ThreadPoolExecutor(1, "snapshot")
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def take(self, *, inside: bool = False, at_once: bool = False) -> Taken:
        """The state as it is now, `inside` an epoch or at its end; `at_once` if it must not turn out to be torn."""
        began_s = time.perf_counter()
        self.settle()
        arena = next(one for one in self._arenas if one.is_free)
        arena.begin()
        taken = Taken(arena)
        allowed = self._allows.get(inside)
        names = Names(self._objects)
        late = {} if at_once or allowed is False else self._changed_by_step(names)
        from_cuda: tuple[list[Pair], list[Pair]] = ([], [])  # at once, and late
        parts: list[Pair] = []  # each with an empty tensor that becomes the whole

        def copied(tensor: Tensor) -> Tensor:
            if is_sharded(tensor):
                if self._share is not None:
                    parts.append((torch.empty(0, dtype=tensor.dtype), tensor))
                    return parts[-1][0]
                tensor = whole(tensor)
            buffer = arena.buffer_for(tensor)
            if buffer is None:
                return tensor.detach().clone()
            waits_for_step = bool(late) and tensor.nbytes <= late.get(tensor.data_ptr(), -1) and tensor.is_contiguous()
            overlaps = waits_for_step and allowed is True
            if overlaps:
                tensor = tensor.detach()  # which goes on naming the same memory, whatever becomes of the original
                taken._late.append((buffer, tensor, tensor._version))
            elif waits_for_step:
                self._seen.append((buffer, tensor))
            if tensor.is_cuda:
                from_cuda[overlaps].append((buffer, tensor))
            elif not overlaps:
                buffer.copy_(tensor)
            return buffer

        self._seen, self._taken_inside = [], inside
        self._stepped = set()
        try:
            with torch.no_grad():
                taken.state = capture(self._objects, copied, names)
                self._bring_together(arena, parts)
        except BaseException:
            arena.release()
            raise
        taken.frozen = frozenset(tensor_name((owner, name)) for owner, name, _ in names.frozen())
        on_cpu = [(buffer, tensor) for buffer, tensor, _ in taken._late if not tensor.is_cuda]
        taken._copied = _Copied(
            self._beside.submit(_copy_all, on_cpu) if on_cpu else None,
            self._copy_from_cuda(*from_cuda),
        )
        taken.stall_s = time.perf_counter() - began_s
        if not taken._late:
            taken.settle()
        self._last = taken
        return taken

    def settle(self) -> None:
        """Returns when everything may be changed again."""
        if self._last is None:
            return
        self._last.settle()
        if self._last.torn and any(self._allows.values()):
            self._allows = {False: False, True: False}
            log.warning(
                "weights or optimizer state change between the end of an epoch and the next optimizer step: "
                "one checkpoint is dropped, and training waits for every copy from now on"
            )
        self._last = None

    def close(self) -> None:
        """Ends what goes on beside training; the objects are as they were before."""
        self.settle()
        for hook in self._hooks:
            hook.remove()
        self._beside.shutdown()

    def _bring_together(self, arena: Arena, parts: list[Pair]) -> None:
        if parts and self._share is not None:
            tensors = [tensor for _, tensor in parts]
            memory = arena.shared(size_of(tensors))
            self._share((memory.place, memory.size_bytes))
            for (empty, _), found in zip(parts, brought_together(tensors, memory.bytes), strict=True):
                empty.set_(found.untyped_storage(), found.storage_offset(), found.shape, found.stride())

    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        self._stepped.add(optimizer)
        if self._seen:
            same = all(_same_bits(buffer, tensor) for buffer, tensor in self._seen)
            self._allows[self._taken_inside] = same
            self._seen = []
        self.settle()

    def _changed_by_step(self, names: Names) -> dict[int, int]:
        """Where the memory is that only a `step` changes that was seen to happen; address -> bytes.

        A step that is replayed from a CUDA graph calls no hook, and frozen parameters wait for somebody's.
        """
        if not self._stepped:
            return {}
        found: list[Tensor] = []
        for optimizer in self._stepped:
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                # What an optimizer keeps of a small one is small too.
                if is_plain(parameter) and parameter.nbytes >= _LATE_BYTES:
                    found += [parameter, *_tensors(optimizer.state.get(parameter))]
        found += [parameter for _, _, parameter in names.frozen()]
        return {
            one.data_ptr(): one.nbytes
            for one in found
            if is_plain(one) and one.nbytes >= _LATE_BYTES and not one.is_inference()  # those have no version
        }

    def _copy_from_cuda(self, at_once: list[Pair], late: list[Pair]) -> list[torch.cuda.Event]:
        """Queues the copies on streams of their own, one a device; the training's wait for them where they must."""
        events: list[torch.cuda.Event] = []
        for device in {tensor.device for _, tensor in (*at_once, *late)}:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            training, beside = torch.cuda.current_stream(device), self._streams[device]
            beside.wait_stream(training)
            with torch.no_grad(), torch.cuda.stream(beside):
                for buffer, tensor in at_once:
                    if tensor.device == device:
                        buffer.copy_(tensor, non_blocking=True)
                training.wait_stream(beside)
                for buffer, tensor in late:
                    if tensor.device == device:
                        buffer.copy_(tensor, non_blocking=True)
                events.append(beside.record_event())
        return events


class _Copied:
    """The copies of one snapshot that go on beside training."""

    def __init__(self, thread: "Future[None] | None", cuda: list[torch.cuda.Event]) -> None:
        self._thread, self._cuda = thread, cuda

    def before_change(self) -> None:
        """Makes the training wait; on CUDA its stream does, not this thread."""
        if self._thread is not None:
            self._thread.result()
        for event in self._cuda:
            torch.cuda.current_stream(event.device).wait_event(event)

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.result()
        for event in self._cuda:
            event.synchronize()


@torch.no_grad()
def _copy_all(pairs: Iterable[Pair]) -> None:
    for buffer, tensor in pairs:
        buffer.copy_(tensor)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, other.to(one.device))))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]
