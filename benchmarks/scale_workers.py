"""Simulated workers for `benchmarks.scale`: what a worker asks of its study, between epochs that are waited for.

Those of one process share a cache of trials that have ended and the statements that SQLAlchemy has compiled. Each has a
connection of its own, a thread, and the name of a machine: of another machine's workers only heartbeats tell.
"""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState, create_trial
from sqlalchemy import event, insert
from sqlalchemy.pool import SingletonThreadPool

from pipeline.sweep import process
from pipeline.sweep.lineage import COMPLETE, Lineage
from pipeline.sweep.samplers import numbered_trial, sampling_view
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study

T = TypeVar("T")
SPACE = {"lr": FloatDistribution(1e-4, 1.0, log=True), "width": IntDistribution(4, 128)}
WARM_UP = 0.25  # of the time: a connection's first statements cost the server the most
BEYOND = 10_000  # no epoch that is trained
PREPARED = 6  # epochs after which a connection and the server have prepared the statements of the next
SEGMENT, EPOCH, CLAIM = "segment", "epoch", "claim"


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long the calls took that workers have made, in seconds."""

    calls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def timed(self, name: str, call: Callable[[], T]) -> T:
        began_s = time.perf_counter()
        found = call()
        self.calls[name].append(time.perf_counter() - began_s)
        return found


def spec(epochs: int) -> StudySpec:
    """A search without end, at random, each configuration of which is trained in one segment."""
    return StudySpec(
        experiment="scale.py",
        code="",
        data=None,
        data_options={},
        config=None,
        monitor="loss",
        direction="minimize",
        configurations=10**6,
        max_epochs=epochs,
        min_epochs=1,
        eta=3,
        pruner="none",
        sampler="random",
        seed=0,
    )


def begun(study: Study, number: int, epochs: int) -> int:
    """Adds a configuration that this process has been training for so many epochs; returns the id of its trial."""
    trial = create_trial(
        state=TrialState.RUNNING,
        params={"lr": 0.1, "width": 8},
        distributions=dict(SPACE),
        user_attrs={
            "configuration": number,
            "parent": None,
            "until": study.spec.max_epochs,
            "start": None,
            "config": {"lr": 0.1, "width": 8},
            "run_id": "0" * 32,
            "progress": _progress(number, epochs),
            "worker": {**process.identity(), "host": f"machine {number}"},
            "claimant.000000000000": {**process.identity(), "host": f"machine {number}"},
        },
    )
    trial_id = study.storage.create_new_trial(study.id, trial)
    study.beat(trial_id)
    values = [
        {"trial_id": trial_id, "step": epoch, "intermediate_value": 1.0, "intermediate_value_type": "FINITE"}
        for epoch in range(1, epochs + 1)
    ]
    if values:
        with study._heartbeats.engine.begin() as connection:
            connection.execute(insert(models.TrialIntermediateValueModel), values)
    return trial_id


def epoch(study: Study, trial_id: int, done: int) -> None:
    """What follows an epoch of 10 s, in the order of `Saver` and `Heartbeats`."""
    study.beat(trial_id)
    study.set(trial_id, "progress", _progress(trial_id, done))
    study.report(trial_id, done, 1.0)


class Epochs:
    """What follows an epoch, as the database sees it: the statements of `epoch`, recorded once, sent each time.

    What Optuna and SQLAlchemy compute for them, a real worker computes on a machine of its own.
    """

    def __init__(self, study: Study, trial_id: int, done: int) -> None:
        """Records them, of one more epoch of a trial that has begun."""
        self._engine = study._heartbeats.engine
        self._transactions: list[list[tuple[str, dict[str, Any]]]] = [[]]

        def note(_connection: Any, _cursor: Any, statement: str, parameters: dict[str, Any], *_: Any) -> None:
            self._transactions[-1].append((statement, parameters))

        def commit(_connection: Any) -> None:
            self._transactions.append([])

        event.listen(self._engine, "before_cursor_execute", note)
        event.listen(self._engine, "commit", commit)
        epoch(study, trial_id, done)
        event.remove(self._engine, "before_cursor_execute", note)
        event.remove(self._engine, "commit", commit)
        assert not self._transactions.pop()  # nothing follows the last commit

    def send(self, trial_id: int, done: int) -> None:
        values = {
            "trial_id": trial_id,
            "heartbeat": datetime.now(UTC),
            "value_json": json.dumps(_progress(trial_id, done)),
            "step": done,
        }
        for transaction in self._transactions:
            connection = self._engine.raw_connection()  # which asks whether it still works, as it does each time
            cursor = connection.cursor()
            for statement, parameters in transaction:
                given = {name: values.get(name.removesuffix("_1"), value) for name, value in parameters.items()}
                cursor.execute(statement, given)
                if "FROM trial_heartbeats" in statement:
                    (values["trial_heartbeats_trial_heartbeat_id"], *_) = cursor.fetchone()
            connection.commit()
            connection.close()


def segment(study: Study, times: Times) -> Lineage:
    """Claims the next segment and draws its configuration, as `work` does."""
    found = times.timed(CLAIM, lambda: next_segment(study))
    assert not isinstance(found, str)
    trial_id = found.head._trial_id
    trial = numbered_trial(sampling_view(study, study.spec, found.number), trial_id, found.number)
    config = {"lr": trial.suggest_float("lr", 1e-4, 1.0, log=True), "width": trial.suggest_int("width", 4, 128)}
    study.set(trial_id, "config", config)
    study.set(trial_id, "run_id", "0" * 32)
    return found


def end(study: Study, trial_id: int) -> None:
    study.storage.get_trial(trial_id)
    study.end(trial_id, TrialState.COMPLETE, COMPLETE, 1.0)


def work(
    url: str, name: str, owned: Sequence[tuple[int, int]], epoch_s: float, run_s: float, start: Any, to: Any
) -> None:
    """The life of some workers, from the moment when all are connected, for `run_s` seconds.

    `owned` are the trials they begin with, and how many epochs of these are done.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    process._host = lambda: threading.current_thread().name  # each is on a machine of its own
    study = Study.load(name, url)
    storage = study._heartbeats
    assert isinstance(storage, RDBStorage)
    storage.engine.pool = SingletonThreadPool(
        storage.engine.pool._creator, pool_size=len(owned) + 1, pre_ping=True, dialect=storage.engine.dialect
    )
    study.trials()
    epochs = Epochs(study, owned[0][0], BEYOND - 1)
    all_times: list[Times] = []
    errors: list[BaseException] = []
    ready = threading.Barrier(len(owned) + 1)
    go = threading.Event()
    one_by_one = threading.Lock()

    def live(trial_id: int, done: int) -> None:
        own = study.through(lambda storage: storage)
        try:
            try:
                with one_by_one:
                    for more in range(PREPARED):
                        epochs.send(trial_id, BEYOND + more)
            finally:
                ready.wait()
            go.wait()
            all_times.append(_live(own, epochs, trial_id, done, epoch_s, run_s))
        except BaseException as error:  # what ends a thread is to be told
            errors.append(error)
            raise

    threads = [threading.Thread(target=live, args=one, daemon=True) for one in owned]
    for thread in threads:
        thread.start()
    ready.wait()
    start.wait()
    go.set()
    for thread in threads:
        thread.join()
    to.send((all_times, [repr(error) for error in errors]))


def _live(study: Study, epochs: Epochs, trial_id: int, done: int, epoch_s: float, run_s: float) -> Times:
    times, is_warm = Times(), False
    began_s = time.monotonic()
    warm_s = began_s + WARM_UP * run_s
    ends_s, due_s = began_s + run_s, began_s + random.random() * epoch_s
    max_epochs = study.spec.max_epochs
    while due_s < ends_s:
        time.sleep(max(0.0, due_s - time.monotonic()))
        if time.monotonic() >= ends_s:
            break
        if not is_warm and time.monotonic() >= warm_s:
            times, is_warm = Times(), True
        done += 1
        times.timed(EPOCH, lambda trial_id=trial_id, done=done: epochs.send(trial_id, done))
        due_s += epoch_s
        if done == max_epochs:
            claims_s = time.monotonic()

            def turn(trial_id: int = trial_id, times: Times = times) -> Lineage:
                end(study, trial_id)
                return segment(study, times)

            trial_id, done = times.timed(SEGMENT, turn).head._trial_id, 0
            due_s += time.monotonic() - claims_s  # it trains nothing meanwhile
    return Times(calls=dict(times.calls))


def _progress(trial: int, epochs: int) -> dict[str, Any]:
    name = f"s0-e{epochs:05d}-b000000-t{trial:06d}"
    best = {"epoch": epochs, "value": 1.0, "checkpoint": name, "metrics": {"loss": 1.0}}
    return {"checkpoint": name, "epochs": epochs, "best": best, "seconds": 10.0 * epochs}
