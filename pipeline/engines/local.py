"""Workers as processes of this machine, started from a forkserver that has torch and MLflow loaded.

This process, the supervisor, only watches: it starts workers anew when they die, passes a stop on to them, and
waits until they have taken their checkpoints. When it dies itself, each worker notices and stops likewise.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess

import psutil

from pipeline import signals
from pipeline.errors import ThawError
from pipeline.signals import StopRequest
from pipeline.sweep.patience import Unsaved
from pipeline.sweep.segment import Keeping
from pipeline.sweep.study import Study

log = logging.getLogger("pipeline")
# torch._dynamo is what the constructor of the first optimizer imports, for seconds; the stores are what the first
# access to a database imports.
PRELOADED = [
    *("torch", "torch._dynamo", "pandas", "mlflow", "mlflow.store.tracking.sqlalchemy_store"),
    *("optuna", "optuna.storages._rdb.storage", "optuna.storages._rdb.models", "alembic.migration"),
    "pipeline.sweep.worker",
]
DEATHS_IN_A_ROW = 5  # of workers that had not even begun a segment; each segment has its own limit
TICK_S = 1.0
# A worker's exit codes. 1 is Python's own, for an exception that nobody has foreseen: that worker has died.
DONE, GIVEN_UP, UNSAVED, STOPPED = 0, 3, 4, 75
FORKSERVER_GONE = 255  # what multiprocessing says of a process whose end it can't learn


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers of a study are to do.

    Attributes:
        study, storage: the study's name, and the URL of its database.
        workers: how many processes.
        keeping: how checkpoints are kept.
        timeout_s: seconds after which everything stops resumably; None for never.
        only: the configurations to work on; None for all.
    """

    study: str
    storage: str
    workers: int
    keeping: Keeping
    timeout_s: float | None = None
    only: Collection[int] | None = None


def start_forkserver() -> ForkServerContext:
    """Starts loading the heavy modules in the forkserver; returns at once.

    Signals are blocked meanwhile, and stay so in the forkserver: a signal to the whole process group must not
    end it before its children have taken their checkpoints. It ends with this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # else the forkserver starts it, which unblocks signals again
    with signals.blocked():
        forkserver.ensure_running()
    return context


def run(job: Job, context: ForkServerContext, stop: StopRequest) -> bool:
    """Runs the workers until nothing is left to do (True) or everything was stopped (False).

    Raises:
        ThawError: the workers die again and again without getting anywhere.
    """
    supervisor = _Supervisor(job, context, stop)
    deadline = None if job.timeout_s is None else time.monotonic() + job.timeout_s
    parent = os.getppid()
    try:
        while supervisor.processes:
            if deadline is not None and time.monotonic() >= deadline:
                stop.ask("timeout")
            if os.getppid() != parent and "MLFLOW_RUN_ID" in os.environ:
                stop.ask("the process that ran this command is gone")
            if stop.reason is not None:
                supervisor.stop()
            supervisor.turn()
    finally:
        supervisor.stop()
        supervisor.join()
    return supervisor.done and stop.reason is None


class _Supervisor:
    """The worker processes of a job."""

    def __init__(self, job: Job, context: ForkServerContext, stop: StopRequest) -> None:
        self._job = job
        self._context = context
        self._stop = stop
        self._study = Study.load(job.study, job.storage)
        self._stopping = False
        self._idle_deaths = 0
        self.done = False
        self.processes: list[ForkServerProcess] = [self._start() for _ in range(job.workers)]

    def turn(self) -> None:
        """Waits for something to happen to a worker, for at most a tick."""
        multiprocessing.connection.wait([process.sentinel for process in self.processes], TICK_S)
        for process in [one for one in self.processes if not one.is_alive()]:
            self.processes.remove(process)
            self._ended(process)

    def stop(self) -> None:
        """Asks every worker to take its checkpoint and leave; once."""
        if not self._stopping:
            self._stopping = True
            for process in self.processes:
                process.terminate()

    def join(self) -> None:
        for process in self.processes:
            process.join()

    def _start(self) -> ForkServerProcess:
        arguments = (self._job, logging.getLogger().level)
        process = self._context.Process(target=_work, args=arguments, daemon=False)
        for last in (False, False, True):
            try:
                with signals.blocked():  # a forkserver that has died is started anew here
                    process.start()
                break
            except (EOFError, ConnectionError):  # it is dying right now
                if last:
                    raise
                process = self._context.Process(target=_work, args=arguments, daemon=False)
        return process

    def _ended(self, process: BaseProcess) -> None:
        if process.exitcode == DONE:
            self.done = True
            return
        if process.exitcode == GIVEN_UP:
            raise ThawError("a worker could not go on; its reason stands above")
        if process.exitcode == UNSAVED:
            self._stop.ask("checkpoints cannot be saved")
            return
        if process.exitcode == FORKSERVER_GONE:
            self._end_orphan(process)
        # A signal to the whole group may reach a worker first: then this process is being stopped as well.
        if self._stopping or (process.exitcode == STOPPED and self._stop.wait(TICK_S)):
            return
        self._idle_deaths = 0 if self._had_work(process) else self._idle_deaths + 1
        if self._idle_deaths > DEATHS_IN_A_ROW * self._job.workers:
            raise ThawError(f"workers died {self._idle_deaths} times in a row (last exit code {process.exitcode})")
        self._study.close_dead()  # else what it lost would wait until a worker looks for more to do
        log.warning("a worker died (exit code %s); another continues its work", process.exitcode)
        self.processes.append(self._start())

    def _had_work(self, process: BaseProcess) -> bool:
        owners = (trial.user_attrs.get("worker") for trial in self._study.trials())
        return any(owner is not None and owner["pid"] == process.pid for owner in owners)

    def _end_orphan(self, process: BaseProcess) -> None:
        """Lets a worker whose forkserver has died take its checkpoint: its end cannot be told from its exit code."""
        try:
            orphan = psutil.Process(process.pid)
            orphan.terminate()
            orphan.wait()
        except psutil.NoSuchProcess:
            pass


def _work(job: Job, log_level: int) -> None:
    """A worker process. Exits with 0 when nothing is left, 75 when it was stopped, 3 when it cannot go on, and 4 when
    what it trains cannot be saved.
    """
    stop = StopRequest()
    stop.watch()
    # A process from a forkserver starts its own by it as well; loaders here work as in a plain script.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    # The first temporary name is made under a lock: a loader's worker that is forked while the checkpoint writer
    # holds it would wait for it for ever.
    with tempfile.TemporaryDirectory():
        pass
    _watch_parent(stop)
    configure_logging(log_level)
    from pipeline.sweep.worker import work
    from pipeline.tracking.server import connect

    try:
        connect()
        study = Study.load(job.study, job.storage)
        finished = work(study, stop, keeping=job.keeping, only=job.only)
    except ThawError as error:
        log.error("%s", error)
        sys.exit(UNSAVED if isinstance(error, Unsaved) else GIVEN_UP)
    finally:
        # Loaders' workers that are still there would be waited for at exit, and obey no signal that asks. Torch's
        # handler would take their end for a fault.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
    sys.exit(DONE if finished else STOPPED)


def _watch_parent(stop: StopRequest) -> None:
    """When the supervisor dies, its workers take their checkpoints and leave; no orphan trains on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        stop.ask("the supervisor is gone")

    threading.Thread(target=watch, name="supervisor watch", daemon=True).start()


def configure_logging(level: int) -> None:
    """Plain lines of ours on stderr; of the libraries only warnings."""
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("optuna", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
