"""A process of a proof: it prepares the data, or trains until it is done, stopped or killed.

Nothing of the user's reaches the outside: what it prints goes to a file, what it logs to a store in the scratch folder.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.checkpoint import Position
from pipeline.errors import ThawError
from pipeline.experiment import Experiment, ExperimentFile, from_params, load_experiment
from pipeline.proving.plan import Kill
from pipeline.proving.record import Record
from pipeline.proving.segment import ProvingSegment
from pipeline.signals import StopRequest
from pipeline.stages.prepare import checked
from pipeline.stages.train import train
from pipeline.tracking import scratch

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process is to do.

    Attributes:
        file: the experiment file.
        scratch: the proof's folder, with the tables.
        name: of the training that this is a part of; its folder in `scratch`.
        number: of this part; None to prepare the data and nothing else.
        config, data: as plain values; `data` is None if `prepare` has no options.
        max_epochs: for each stage, at most.
        threads: torch's.
        kill: what this process waits for, at its place.
        look_at: positions where the loop's variables are recorded.
    """

    file: Path
    scratch: Path
    name: str
    number: int | None
    config: dict[str, Any]
    data: dict[str, Any] | None
    max_epochs: int
    seed: int
    threads: int
    kill: Kill | None = None
    look_at: tuple[Position, ...] = ()

    @property
    def folder(self) -> Path:
        return self.scratch / self.name

    @property
    def record(self) -> Path:
        """The moments of this process."""
        return self.folder / f"record-{self.number}.jsonl"


def work(task: Task, pipe: Connection) -> None:
    """The process. Through `pipe` it says ("resumed", position), ("strike", position), and in the end ("ended", how)
    or ("failed", why, trace). After "strike" it waits for its signal.
    """
    stop = StopRequest()
    stop.watch()
    _leave_with_parent()
    # A process from a forkserver starts its own by it as well; loaders here work as in a plain script.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    task.folder.mkdir(exist_ok=True)
    _redirect_output(task.folder / "output.txt")
    try:
        file = load_experiment(task.file)
        with _tracking(task, file):
            ended = _prepare(task, file) if task.number is None else _train(task, file, stop, pipe)
        pipe.send(("ended", ended))
    except Exception as error:  # noqa: BLE001  the user's code may raise anything
        reason = str(error) if isinstance(error, ThawError) else f"{type(error).__name__}: {error}"
        pipe.send(("failed", reason, traceback.format_exc()))
    finally:
        # A loader's workers obey no signal that asks. Torch's handler would take their end for a fault.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()


def save_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Writes the tables as training will read them."""
    folder.mkdir()
    for number, (name, table) in enumerate(tables.items()):
        table.to_parquet(folder / f"{number:03}-{name}.parquet")


def load_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """What `save_tables` wrote; nothing without the folder."""
    return {path.stem.partition("-")[2]: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def _prepare(task: Task, file: ExperimentFile) -> str:
    experiment = file.experiment
    assert experiment.prepare is not None
    options = None
    if experiment.data is not None and task.data is not None:
        options = from_params(experiment.data, task.data)
    save_tables(task.scratch / "tables", checked(experiment.prepare(options)))
    return "complete"


def _train(task: Task, file: ExperimentFile, stop: StopRequest, pipe: Connection) -> str:
    def strike(at: Position) -> None:
        pipe.send(("strike", at))
        assert task.kill is not None
        if task.kill.signal == signal.SIGKILL:
            pipe.recv()  # for ever
        while stop.reason is None:
            stop.wait(60)

    segment = ProvingSegment(
        task.folder / CHECKPOINTS,
        Record(task.record),
        stop,
        kill=task.kill,
        strike=strike,
        sources=file.sources,
        look_at=task.look_at,
        on_resume=lambda at: pipe.send(("resumed", at)),
    )
    return train(
        shortened(file.experiment, task.max_epochs),
        from_params(file.experiment.config, task.config),
        segment=segment,
        seed=task.seed,
        max_epochs=task.max_epochs,
        threads=task.threads,
        data=load_tables(task.scratch / "tables"),
        origin={},
        checkpoint_every_s=0.0,  # a snapshot after each batch; the segment chooses which are written
    )


def shortened(experiment: Experiment, max_epochs: int) -> Experiment:
    """The experiment with no stage longer than that; one without stages is told its epochs as it starts."""
    if not isinstance(experiment.train, tuple):
        return experiment
    stages = tuple(replace(stage, max_epochs=min(stage.max_epochs, max_epochs)) for stage in experiment.train)
    return replace(experiment, train=stages, max_epochs=0)


@contextlib.contextmanager
def _tracking(task: Task, file: ExperimentFile) -> Iterator[None]:
    """What the user's code logs by itself goes to the scratch folder, into one run a training."""
    scratch.use(task.scratch)
    if any("mlflow" in source.read_text(encoding="utf-8") for source in file.sources):
        with scratch.active_run(task.scratch, task.name):
            yield
    else:
        yield


def _redirect_output(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
