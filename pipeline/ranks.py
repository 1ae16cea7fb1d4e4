"""The processes of one trial, and what they say to each other while they train.

torch's default process group is the user's: `DistributedDataParallel(model)` and `fully_shard(model)` find it. What is
here goes over a group of its own, on the CPU. Rank 0 holds the trial: it writes, and it decides. The others are told,
by values that are small and seldom: a checkpoint's or an epoch's end takes a few collectives, and between two batches
there is one at most every `AGREE_EVERY_S` (0.4 ms over gloo on one machine), however quick the batches are.
"""

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.checkpoint import decode, encode
from pipeline.signals import StopRequest

AGREE_EVERY_S = 0.25
MAX_BATCHES = 10_000  # between two agreements
# A process that dies is seen by its supervisor, and one that hangs by its pulse: both long before torch would.
FOREVER = timedelta(days=30)

T = TypeVar("T")


class Ranks:
    """The processes of a trial, as one of them sees them; without a group, there is this one alone.

    Attributes:
        rank: the number of this one; 0 holds the trial.
        parted: an exception has left training here, so that nobody knows where the others stand.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, stop: StopRequest | None = None, store: Any = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self.parted = False
        self._stop = stop
        self._store = store
        self._group = dist.new_group(backend="gloo", timeout=FOREVER) if world_size > 1 else None
        self._batches_left = 1  # until the next agreement: the same on every rank
        self._batches = 0  # since the last one
        self._agreed_s = time.monotonic()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agree(self, stop: bool, due: bool, *, now: bool = False) -> tuple[bool, bool]:
        """Whether to stop, because one has been asked to, and whether a checkpoint is due, of which rank 0 decides.

        Every rank calls it after the same batch. Not each time are the others asked; `now` they are. Whoever has to
        stop because of another is asked to stop itself.
        """
        if self.world_size == 1:
            return stop, due
        self._batches_left -= 1
        self._batches += 1
        if self._batches_left > 0 and not now:
            return False, False
        batch_s = max(time.monotonic() - self._agreed_s, 1e-6) / self._batches
        until_next = min(max(1, int(AGREE_EVERY_S / batch_s)), MAX_BATCHES)
        wishes = torch.tensor([stop, due and self.is_main, until_next if self.is_main else 0])
        dist.all_reduce(wishes, dist.ReduceOp.MAX, self._group)
        stops, is_due, self._batches_left = wishes.tolist()
        self._batches, self._agreed_s = 0, time.monotonic()
        if stops and not stop and self._stop is not None:
            self._stop.ask("another process of the trial was asked to stop")
        return bool(stops), bool(is_due)

    def share(self, value: T) -> T:
        """What rank 0 has, on every rank."""
        if self.world_size == 1:
            return value
        data = _packed(value) if self.is_main else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([data.numel()])
        dist.broadcast(size, 0, self._group)
        if not self.is_main:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0, self._group)
        return value if self.is_main else _unpacked(data)

    def collect(self, value: T) -> list[T]:
        """What every rank has, in their order, on rank 0; the others get nothing."""
        if self.world_size == 1:
            return [value]
        data = _packed(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([data.numel()]), self._group)
        largest = max(int(size) for size in sizes)
        sent = torch.zeros(largest, dtype=torch.uint8)
        sent[: data.numel()] = data
        found = [torch.empty(largest, dtype=torch.uint8) for _ in sizes] if self.is_main else None
        dist.gather(sent, found, 0, self._group)
        return [_unpacked(one[: int(size)]) for one, size in zip(found or (), sizes, strict=False)]

    def tell(self, name: str, value: Any) -> None:
        """Leaves a plain value for the others, which they find also when this process is no more."""
        if self._store is not None:
            self._store.set(f"{name}/{self.rank}", json.dumps(value))

    def told(self, name: str, rank: int) -> Any:
        """What that rank has left under this name; None if nothing."""
        key = f"{name}/{rank}"
        if self._store is None or not self._store.check([key]):
            return None
        return json.loads(self._store.get(key))


def connect(rank: int, world_size: int, rendezvous: Path, stop: StopRequest) -> Ranks:
    """Joins the processes of a trial; returns when all have. They are on one machine and meet at a file, `rendezvous`.

    Each sees one device at most, its own. The environment says what torchrun would have it say.
    """
    has_device = torch.cuda.is_available()
    if has_device:
        torch.cuda.set_device(0)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0" if has_device else str(rank)}
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:  # else gloo would listen where the machine's name leads to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    store = dist.FileStore(str(rendezvous), world_size)  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_device else "gloo",
        store=dist.PrefixStore("torch", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world_size,
        timeout=FOREVER,
    )
    return Ranks(rank, world_size, stop, dist.PrefixStore("thaw", store))  # type: ignore[attr-defined]


def settle_buckets(model: object) -> None:
    """Makes DistributedDataParallel lay out its buckets now, the same way whenever it is called on the same model.

    By itself it does so after its first backward pass, and where a gradient lies says in which order more than two are
    summed: the first step after a resume would differ from the same one of a training that was not stopped. So there is
    a backward pass here that changes nothing, and visits the parameters from the last to the first. (Two are summed
    alike in any order. A static graph, sparse gradients and steps taken inside the backward pass would be disturbed.)
    """
    if not isinstance(model, DistributedDataParallel) or model.static_graph:
        return
    parameters = [one for one in model.module.parameters() if one.requires_grad]
    is_sparse = any(getattr(one, "sparse", False) for one in model.module.modules())  # whose gradients are as well
    if is_sparse or any(getattr(one, "_post_accumulate_grad_hooks", None) for one in parameters):
        return
    gradients = [one.grad for one in parameters]
    model.reducer.prepare_for_forward()
    model.reducer.prepare_for_backward([])
    nothing = torch.zeros((), device=parameters[0].device)
    for one in parameters:
        nothing = nothing + (one.sum().abs() * 0).to(nothing.device)
    nothing.backward()  # type: ignore[no-untyped-call]
    for one, gradient in zip(parameters, gradients, strict=True):
        one.grad = gradient


def _packed(value: Any) -> Tensor:
    """As bytes, by the codec of checkpoints."""
    tree, tensors = encode(value)
    text = json.dumps(tree).encode()
    data = len(text).to_bytes(8, "little") + text + save(tensors)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(data: Tensor) -> Any:
    raw = data.numpy().tobytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    return decode(json.loads(raw[8:size]), load(raw[size:]))
