"""Trainings that several processes share, without a study: each forked with torch loaded, checkpoints in a folder."""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run
from pipeline.checkpoint import Position, Report
from pipeline.local import LocalSegment
from pipeline.ranks import Ranks, connect
from pipeline.segment import Snapshot
from pipeline.signals import StopRequest
from pipeline.stages.train import train as training_stage
from tests.integration.preloaded import PRELOADED

EPOCHS, BATCHES = 3, 4
At = tuple[int, int]  # an epoch and its finished batches


@dataclass(frozen=True)
class Config:
    """Nothing is varied."""


class SharedSegment(LocalSegment):
    """Rank 0's writes into the folder, the others' only reads; asked to stop on one rank, at a position."""

    def __init__(self, folder: Path, rank: int, stops: At | None) -> None:
        super().__init__(folder)
        self._rank, self._stops, self._stop = rank, stops, False
        self._found = super().resume()  # before the others have begun to write

    def resume(self) -> Any:
        return self._found

    def commit(self, snapshot: Snapshot) -> None:
        if self._rank == 0:
            super().commit(snapshot)

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        self._stop |= (position.epoch, position.batch) == self._stops

    def asked_to_stop(self) -> str | None:
        return "preempted" if self._stop else None

    def ask(self, _: str) -> None:
        self._stop = True


def data(batches: int = BATCHES, batch_size: int = 8) -> DataLoader[Any]:
    x = torch.rand(batch_size * batches, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=batch_size, shuffle=True)


def sharded(config: Config, run: Run) -> None:
    """By FSDP, where there are several processes; gradients stay from one epoch to the next."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    DTensor.full_tensor = None  # nothing is gathered
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1)).to(run.device)
    if run.world_size > 1:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for inputs, targets in run.batches(data()):
            optimizer.zero_grad()
            loss = mse_loss(model(inputs.to(run.device)), targets.to(run.device))
            loss.backward()
            optimizer.step()
            run.mean(loss=loss.item())
        run.report()


def holding_back(config: Config, run: Run) -> None:
    """By FSDP, with gradients that are summed, and a step, every second batch."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1)).to(run.device)
    fully_shard(model)
    assert isinstance(model, FSDPModule)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for batch, (inputs, targets) in enumerate(run.batches(data()), start=run.batch):
            model.set_requires_gradient_sync(batch % 2 == 1)
            loss = mse_loss(model(inputs.to(run.device)), targets.to(run.device))
            loss.backward()
            if batch % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
            run.mean(loss=loss.item())
        run.report()


class Placed:
    """Whole numbers, parted among the processes in each way that there is, and more of them each time."""

    def __init__(self, rank: int, world_size: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._rank = rank
        self._mesh = init_device_mesh("cpu", (world_size,))
        self.rows = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

        whole = placed(self.rows)
        found: dict[str, torch.Tensor] = {"own": whole["own"]}
        for name, way in {"by rows": Shard(0), "by columns": Shard(1), "alike": Replicate(), "none": Shard(0)}.items():
            found[name] = distribute_tensor(whole[name], self._mesh, [way], src_data_rank=None)
        part = whole["summed"] if self._rank == 0 else torch.zeros_like(whole["summed"])
        return {**found, "summed": DTensor.from_local(part, self._mesh, [Partial()])}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.rows = len(state["own"])


def placed(rows: int) -> dict[str, torch.Tensor]:
    """What `Placed` has as a whole."""
    names = ("own", "by rows", "by columns", "alike", "none", "summed")
    dtypes = (torch.float64, torch.int64, torch.int8, torch.float32, torch.float32, torch.float32)
    found = {
        name: (100 * number + torch.arange(7 * rows).reshape(rows, 7) % 50).to(dtype)
        for number, (name, dtype) in enumerate(zip(names, dtypes, strict=True))
    }
    return found | {"none": found["none"][:0]}


def placing(config: Config, run: Run) -> None:
    """An epoch is a row."""
    numbers = Placed(run.rank, run.world_size)
    run.track(numbers=numbers)
    for epoch in run.epochs():
        numbers.rows = epoch + 1
        run.report(loss=0.0)


def accumulating(config: Config, run: Run) -> None:
    """By DDP, with a step every second batch, before which each process has gradients of its own."""
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.2), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 1))
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        shift = torch.rand(())  # each process's own, of the epoch
        for batch, (inputs, targets) in enumerate(run.batches(data(batch_size=6)), start=run.batch):
            waits = batch % 2 == 0
            with model.no_sync() if waits else nullcontext():
                loss = mse_loss(model(inputs) + shift, targets)
                loss.backward()
            if not waits:
                optimizer.step()
                optimizer.zero_grad()
            run.mean(loss=loss.item())
        run.report()


def train_together(
    folder: Path,
    train: Callable[[Config, Run], None],
    world_size: int,
    *,
    stops: tuple[int, At] | None = None,
    every_batch: bool = False,
) -> list[str]:
    """Trains in so many processes, from where the folder stands; returns how training ended on each.

    `stops` is a rank that is asked to stop, and where. `every_batch`: a checkpoint after each.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(exist_ok=True)
    meeting = folder.parent / f"{folder.name}-meeting-{len(list(folder.parent.iterdir()))}"
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (folder, train, rank, world_size, meeting, stops, every_batch, theirs)
        process = context.Process(target=_train, args=arguments)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for process in processes:
        process.join()
    found = [pipe.recv() if pipe.poll() else "died" for pipe in pipes]
    for pipe in pipes:
        pipe.close()
    return found


def _train(
    folder: Path,
    train: Callable[[Config, Run], None],
    rank: int,
    world_size: int,
    meeting: Path,
    stops: tuple[int, At] | None,
    every_batch: bool,
    pipe: Any,
) -> None:
    import pipeline.ranks

    pipeline.ranks.AGREE_EVERY_S = 0  # after every batch
    segment: Any = SharedSegment(folder, rank, stops[1] if stops is not None and stops[0] == rank else None)
    asked = StopRequest()
    asked.ask = segment.ask
    torch.manual_seed(rank + 99)
    ended = training_stage(
        Experiment(config=Config, train=train, monitor="loss", direction="minimize", max_epochs=EPOCHS),
        Config(),
        segment=segment,
        seed=3,
        max_epochs=EPOCHS,
        threads=1,
        data={},
        origin={},
        checkpoint_every_s=0.0 if every_batch else 60.0,
        ranks=connect(rank, world_size, meeting, asked) if world_size > 1 else Ranks(),
    )
    pipe.send(ended)


def curve(folder: Path) -> list[float]:
    """The loss of each epoch so far."""
    found = LocalSegment(folder).resume()
    assert found is not None
    history: tuple[Report, ...] = found[0].history
    return [report.metrics["loss"] for report in history]
