"""Thaw's own checkpoints, taken by a `Run` as in any training; only the study's database is left out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.method import Method, Times, seconds, synchronise
from benchmarks.training import Training
from pipeline.checkpoint import (
    Checkpoint,
    Manifest,
    MlflowStore,
    Position,
    Report,
    load_newest,
    restore,
    restore_random,
)
from pipeline.checkpoint.manifest import TENSORS
from pipeline.checkpoint.writer import Writer
from pipeline.experiment import Experiment
from pipeline.run import Run
from pipeline.segment import Snapshot, put

AT_ONCE, OVERLAPPED = "thaw", "thaw-overlapped"


@dataclass(frozen=True)
class _Config:
    pass


class BenchmarkSegment:
    """A `pipeline.segment.Segment` that commits to an MLflow run behind training, and knows when it has."""

    trial = 0

    def __init__(self, run_id: str) -> None:
        self.last: Snapshot | None = None
        self.committed_s = 0.0
        self._store = MlflowStore(run_id)
        self._parent: Manifest | None = None
        self._writer: Writer[Snapshot] = Writer(self._write)

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        return None

    def make_room(self, manifest: Manifest) -> bool:
        self._writer.make_room(lambda _: False)
        return False

    def commit(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self._writer.submit(snapshot)

    def checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint.of(self._store, name)

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        pass

    def asked_to_stop(self) -> str | None:
        return None

    def after_epoch(self, report: Report) -> str | None:
        return None

    def finish(self) -> None:
        """Returns when everything is committed; what went before the last is deleted."""
        self.settle()
        self._writer.flush()
        if self._parent is not None:
            self._store.keep_only([self._parent.name], self.trial)

    def settle(self) -> None:
        """Returns when nothing is copied any more."""
        if self.last is not None:
            self.last.taken.settle()

    def close(self) -> None:
        self.settle()
        self._writer.close()

    def _write(self, snapshot: Snapshot) -> None:
        snapshot.taken.wait()
        try:
            self._parent = put(self._store, snapshot, self._parent)
            self.committed_s = time.perf_counter()
        finally:
            snapshot.taken.release()


class Thaw:
    """A run that is asked for one epoch after another: what lies between two of them is what a checkpoint costs."""

    def __init__(self, training: Training, run_id: str) -> None:
        self.segment = BenchmarkSegment(run_id)
        self.beside_s: list[float] = []  # what forward and backward take beside a copy
        experiment = Experiment(
            config=_Config, train=lambda *_: None, monitor="loss", direction="minimize", max_epochs=10**6
        )
        self._run = Run(
            segment=self.segment,
            experiment=experiment,
            seed=0,
            stage=0,
            max_epochs=experiment.max_epochs,
            data={},
            origin={},
            resumed=None,
        )
        self._run.track(**training.objects())
        self._epochs = self._run.epochs()
        next(self._epochs)

    def methods(self) -> list[Method]:
        """What is copied while the training waits, and what is copied beside the next pass."""
        return [
            Method(name=AT_ONCE, take=self._at_once, is_synced=True),
            Method(name=OVERLAPPED, take=self._overlapped, is_synced=True),
        ]

    def take(self) -> float:
        """Ends the epoch; returns for how long the training's thread was held."""
        self._run.report(loss=0.0)
        synchronise()
        began_s = time.perf_counter()
        next(self._epochs)
        return time.perf_counter() - began_s

    def close(self) -> None:
        self._run.close()
        self.segment.close()

    def _at_once(self, training: Training, folder: Path) -> Times:
        # No step between two snapshots, so the second knows of nothing that only a step will change, and waits.
        self.take()
        self.segment.finish()
        return self._times(self.take, _wait)

    def _overlapped(self, training: Training, folder: Path) -> Times:
        alone_s = seconds(training.epoch) if training.device != "cpu" else 0.0

        def rest() -> float:
            assert self.segment.last is not None
            taken = self.segment.last.taken
            before_s = taken.stall_s
            began_s = time.perf_counter()
            training.pass_()
            synchronise()
            self.beside_s.append(time.perf_counter() - began_s)
            training.step()
            if training.device == "cpu":
                return taken.stall_s - before_s
            synchronise()  # the device waits, not this thread
            return max(0.0, time.perf_counter() - began_s - alone_s)

        return self._times(self.take, rest)

    def _times(self, take: Callable[[], float], rest: Callable[[], float]) -> Times:
        began_s = time.perf_counter()
        stall_s = take() + rest()
        self.segment.finish()
        return Times(stall_s=stall_s, total_s=self.segment.committed_s - began_s)


def _wait() -> float:
    """Returns for how long a device was held."""
    began_s = time.perf_counter()
    synchronise()
    return time.perf_counter() - began_s


def resume(run_id: str, objects: dict[str, Any]) -> None:
    """What a process does that starts again: the newest checkpoint, verified, into objects."""
    store = MlflowStore(run_id)
    found = load_newest(store, store.names())
    assert found is not None
    _, state = found
    restore(objects, state)
    restore_random(state["rng"])


def tensor_file(run_id: str) -> Path:
    """The file with the tensors of the newest checkpoint."""
    store = MlflowStore(run_id)
    return store.get(store.names()[-1]) / TENSORS
