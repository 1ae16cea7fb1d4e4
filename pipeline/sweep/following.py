"""The other processes of a trial that several train: they train along with the worker, which holds the trial.

They know no study. The worker, rank 0, shares with them what is to be trained next and from which checkpoint on, and
they enter the same `train`; whatever is decided there, is decided together (see `pipeline.ranks`). An exception ends
them, once they have left word of it; the worker finds that when it has been left alone.
"""

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint, Manifest, MlflowStore, Position, Report, load
from pipeline.errors import UsageError
from pipeline.experiment import from_params, load_experiment
from pipeline.ranks import Ranks
from pipeline.segment import Snapshot
from pipeline.signals import StopRequest
from pipeline.stages.train import train
from pipeline.sweep import process
from pipeline.sweep.failures import ElsewhereError, class_of, place_of
from pipeline.sweep.lineage import LOST, PREEMPTED
from pipeline.tracking import scratch
from pipeline.tracking.tables import Tables

FAILED, LIVES = "failed", "lives"  # what a process leaves word of
PARTING_S, LOOK_S = 2.0, 0.02


@dataclass(frozen=True, kw_only=True)
class Task:
    """A segment, as far as those that train along have to know it.

    Attributes:
        file, code: the experiment's path, and its digest.
        config: as plain values.
        tables_run_id, tables: where the prepared tables are; None without `prepare`.
        run_id, tracking_uri: where its checkpoints are.
        trial: its number.
        checkpoint: the name of the one that it begins with; None at the start of training.
        schedule: see `pipeline.checkpoint.schedules`.
    """

    file: str
    code: str
    config: dict[str, Any]
    seed: int
    max_epochs: int
    threads: int
    tables_run_id: str | None
    tables: Mapping[str, str]
    run_id: str
    tracking_uri: str
    trial: int
    checkpoint: str | None
    schedule: Any


class FollowingSegment:
    """Implements `pipeline.segment.Segment` for a process that writes nothing."""

    def __init__(self, task: Task, stop: StopRequest) -> None:
        self.trial = task.trial
        self._task = task
        self._stop = stop
        self._store = MlflowStore(task.run_id, task.tracking_uri)

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        return None if self._task.checkpoint is None else load(self._store, self._task.checkpoint)

    def make_room(self, manifest: Manifest) -> bool:
        return False

    def commit(self, snapshot: Snapshot) -> None:
        snapshot.taken.settle()

    def checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint.of(self._store, name)

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        pass

    def asked_to_stop(self) -> str | None:
        return None if self._stop.reason is None else PREEMPTED

    def after_epoch(self, report: Report) -> str | None:
        return None


def follow(ranks: Ranks, stop: StopRequest, folder: Path) -> None:
    """Trains along until the worker is gone. What the user's code logs by itself goes to `folder`, and nowhere else.

    Raises what the training raises, once word of it is left.
    """
    scratch.use(folder)
    ranks.tell(LIVES, process.identity())
    while True:
        try:
            task: Any = ranks.share(None)
        except RuntimeError:  # the worker has ended, and its connections with it
            return
        try:
            _train(Task(**task), ranks, stop)
        except Exception as error:
            ranks.tell(
                FAILED,
                {
                    "rank": ranks.rank,
                    "at_s": time.monotonic(),
                    "ended": class_of(error),
                    "type": type(error).__name__,
                    "text": str(error),
                    "place": place_of(error),
                    "trace": "".join(traceback.format_exception(error)),
                },
            )
            raise


def _train(task: Task, ranks: Ranks, stop: StopRequest) -> None:
    file = load_experiment(task.file)
    if file.code_digest != task.code:
        raise UsageError(f"{task.file} was changed while it is trained; stop the study and resume it")
    train(
        file.experiment,
        from_params(file.experiment.config, task.config),
        segment=FollowingSegment(task, stop),
        seed=task.seed,
        max_epochs=task.max_epochs,
        threads=task.threads,
        data={} if task.tables_run_id is None else Tables(task.tables_run_id, task.tables, task.tracking_uri),
        origin={},
        checkpoint_every_s=60.0,  # of which rank 0 decides
        schedule=task.schedule,
        ranks=ranks,
    )


def cause(error: Exception, ranks: Ranks) -> Exception:
    """What has really ended training, where `error` may only say that another process is gone: its death, or its error.

    Called by the worker as soon as it has the error: who was first, is to blame.
    """
    at_s = time.monotonic()
    others = range(1, ranks.world_size)
    until_s = at_s + PARTING_S
    while time.monotonic() < until_s:
        dead = [rank for rank in others if _is_dead(ranks, rank)]
        told = [word for rank in others if (word := ranks.told(FAILED, rank)) is not None]
        killed = [rank for rank in dead if ranks.told(FAILED, rank) is None]
        if killed:
            word = {"rank": killed[0], "ended": LOST, "type": "", "text": "its process was killed", "place": "?"}
            return ElsewhereError({**word, "trace": ""})
        first = min(told, key=lambda word: word["at_s"], default=None)
        if first is not None and first["at_s"] < at_s:
            return ElsewhereError(first)
        time.sleep(LOOK_S)
    return error


def _is_dead(ranks: Ranks, rank: int) -> bool:
    identity = ranks.told(LIVES, rank)
    return identity is not None and process.is_dead(identity)
