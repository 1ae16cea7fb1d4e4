"""What real workers train for `benchmarks.scale`: epochs that sleep, and a log of what the study's database has taken.

A worker's time with the database is that in which one of its threads holds a connection: statements, and making
trials out of what they answer.
"""

import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import torch
from sqlalchemy.pool import Pool
from torch import nn

from pipeline import Experiment, Run

# The driver tells the workers by their environment.
FOLDER, EPOCH_S = "SCALE_FOLDER", "SCALE_EPOCH_S"
MAX_EPOCHS = 9

statements: Counter[str] = Counter()
held_s: Counter[str] = Counter()


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is drawn; nothing depends on it but the loss."""

    lr: float = 1e-2
    width: int = 8


def suggest(trial: optuna.Trial) -> Config:
    return Config(lr=trial.suggest_float("lr", 1e-4, 1.0, log=True), width=trial.suggest_int("width", 4, 128))


def train(config: Config, run: Run) -> None:
    model = nn.Linear(1, 1)
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=config.lr))
    for epoch in run.epochs():
        time.sleep(float(os.environ[EPOCH_S]))
        run.mean(loss=config.lr + config.width / (1 + epoch))
        run.report()


def _note() -> None:
    """What this process has had of the database, by thread."""
    found = {"statements": statements, "held_s": held_s}
    Path(os.environ[FOLDER], f"{os.getpid()}.json").write_text(json.dumps(found))


def _thread() -> str:
    return "training" if threading.current_thread() is threading.main_thread() else threading.current_thread().name


def _count(connection: sqlalchemy.Connection, *_: Any) -> None:
    if connection.dialect.name == "postgresql":
        statements[_thread()] += 1


def _taken(connection: Any, record: Any, _: Any) -> None:
    if type(connection).__module__.startswith("psycopg"):
        record.info["taken_s"] = time.perf_counter()


def _returned(_: Any, record: Any) -> None:
    began_s = record.info.pop("taken_s", None)
    if began_s is not None:
        held_s[_thread()] += time.perf_counter() - began_s


if FOLDER in os.environ:
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", _count)
    sqlalchemy.event.listen(Pool, "checkout", _taken)
    sqlalchemy.event.listen(Pool, "checkin", _returned)
    if multiprocessing.parent_process() is not None:
        Finalize(None, _note, exitpriority=0)  # when the worker ends

experiment = Experiment(
    config=Config, suggest=suggest, train=train, monitor="loss", direction="minimize", max_epochs=MAX_EPOCHS
)
