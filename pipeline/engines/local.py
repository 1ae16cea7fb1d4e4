"""Workers as processes of this machine, started from a forkserver that has torch and MLflow loaded.

This process, the supervisor, only watches: it starts workers anew when they die, passes a stop on to them, and
waits until they have taken their checkpoints. When it dies itself, each worker notices and stops likewise.

Where several processes train one configuration (`processes`), each worker is rank 0 and has others beside it that
train along. They are started, watched and killed here, like the workers, which is what torchrun would do with
`--max-restarts=0`. It is not used: below a worker it would load torch and the experiment anew for each segment (the
forkserver has them), see neither a hang nor what a stop has to wait for, and be a second one that restarts things. Of
torch's launcher that leaves the rendezvous, which is a file. When one of the processes is killed, the others are within
a moment; the trial is lost, and goes on in fresh ones.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import psutil

from pipeline import signals
from pipeline.checkpoint.environment import visible_devices
from pipeline.engines.child import DONE, DUMP_SIGNAL, GIVEN_UP, LEFT, SPENT, STOPPED, UNSAVED, Job, work_as_process
from pipeline.engines.output import Output
from pipeline.errors import ThawError, UsageError
from pipeline.signals import StopRequest
from pipeline.sweep.failures import OomKills, end_hung
from pipeline.sweep.lineage import LOST, OUT_OF_MEMORY, PREEMPTED
from pipeline.sweep.place import SharedPlace
from pipeline.sweep.pulse import Pulse
from pipeline.sweep.study import Study
from pipeline.tracking import runs

log = logging.getLogger("pipeline")
# torch._dynamo is what the constructor of the first optimizer imports, for seconds; the stores are what the first
# access to a database imports.
PRELOADED = [
    *("torch", "torch._dynamo", "pandas", "mlflow", "mlflow.store.tracking.sqlalchemy_store"),
    *("optuna", "optuna.storages._rdb.storage", "optuna.storages._rdb.models", "alembic.migration"),
    "pipeline.engines.child",
]
DEATHS_IN_A_ROW = 5  # of workers that had not even begun a segment; each segment has its own limit
TICK_S = 1.0
PARTING_S = 10.0  # for a worker to record that one that trains along has failed
DUMP_TICK_S, DUMP_TICKS = 0.2, 25
UNSAVED_REASON = "checkpoints cannot be saved"
FORKSERVER_GONE = 255  # what multiprocessing says of a process whose end it can't learn


def start_forkserver(*more: str) -> ForkServerContext:
    """Starts loading the heavy modules in the forkserver; returns at once.

    Signals are blocked meanwhile, and stay so in the forkserver: a signal to the whole process group must not
    end it before its children have taken their checkpoints. It ends with this process. `more` are modules that the
    main one imports, which every child has to load as well.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *more])
    resource_tracker.ensure_running()  # else the forkserver starts it, which unblocks signals again
    with signals.blocked():
        forkserver.ensure_running()
    return context


class Watcher(Protocol):
    """Shows what the workers do, each by the number of its slot."""

    def started(self, slot: int, place: SharedPlace, output: Output) -> None:
        """A worker was started, in place of another one or not; what it writes is to be read until its end."""

    def ended(self, slot: int) -> None:
        """A worker has ended; another may take its place."""


def run(job: Job, context: ForkServerContext, stop: StopRequest, watcher: Watcher | None = None) -> bool:
    """Runs the workers until nothing is left to do (True) or everything was stopped (False).

    Raises:
        ThawError: the workers die again and again without getting anywhere.
    """
    deadline = None if job.timeout_s is None else time.monotonic() + job.timeout_s
    parent = os.getppid()
    with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
        supervisor = _Supervisor(job, context, stop, Path(folder), watcher)
        try:
            while supervisor.workers:
                if deadline is not None and time.monotonic() >= deadline and stop.reason is None:
                    log.info("--timeout: the time is up; everything takes its checkpoint")
                    stop.ask("timeout")
                if os.getppid() != parent and "MLFLOW_RUN_ID" in os.environ:
                    stop.ask("the process that ran this command is gone")
                supervisor.turn()
        finally:
            supervisor.stop()
            while supervisor.workers:
                supervisor.turn()
    return supervisor.done and stop.reason is None


@dataclass(kw_only=True)
class _Worker:
    """A worker process, and those that train along with it.

    Attributes:
        processes: by their ranks; the first is the worker.
        slot: its place among the workers, which says what devices they are given.
        stacks: the files that they write their stacks to when they are asked.
        parting_s: when one that trains along has ended by an error, after which the worker is to end too.
    """

    processes: list[ForkServerProcess]
    slot: int
    pulse: Pulse
    stacks: list[Path]
    parting_s: float | None = None

    @property
    def process(self) -> ForkServerProcess:
        return self.processes[0]


class _Supervisor:
    """The worker processes of a job."""

    def __init__(
        self, job: Job, context: ForkServerContext, stop: StopRequest, folder: Path, watcher: Watcher | None
    ) -> None:
        self._job = job
        self._context = context
        self._stop = stop
        self._folder = folder
        self._watcher = watcher
        self._study = Study.load(job.study, job.storage)
        self._oom_kills = OomKills()
        self._devices = visible_devices()
        if job.processes > len(self._devices) > 0:
            raise UsageError(f"--processes-per-trial {job.processes}: there are {len(self._devices)} GPUs here")
        self._started = count()
        self._stopping = False
        self._grace_ends_s: float | None = None
        self._unclosed: str | None = None  # why a worker has ended that the study could not be told of
        self._idle_deaths = 0
        self.done = False
        self.workers = [self._start(slot) for slot in range(job.workers)]

    def turn(self) -> None:
        """Waits for something to happen to a worker, for at most a tick, and does what has to be done about it."""
        if self._stop.reason is not None:
            self.stop()
        if self._stop.at_once or self._is_grace_over():
            for worker in self.workers:
                _kill_all(worker)
        processes = [process for worker in self.workers for process in worker.processes]
        multiprocessing.connection.wait([one.sentinel for one in processes if one.exitcode is None], TICK_S)
        for worker in self.workers:
            self._look_beside(worker)
        for worker in [one for one in self.workers if not one.process.is_alive()]:
            self.workers.remove(worker)
            _kill_all(worker)
            if self._watcher is not None:
                self._watcher.ended(worker.slot)
            self._ended(worker)
        if self._unclosed is not None:
            with suppress(Exception):  # the database is still away
                self._study.close_dead(self._unclosed)
                self._unclosed = None
        for worker in self.workers:
            still_s = worker.pulse.still_s()
            if still_s is not None:
                self._end_hung(worker, still_s)

    def stop(self) -> None:
        """Asks every worker to take its checkpoint and leave; once."""
        if not self._stopping:
            self._stopping = True
            if self._job.grace_s is not None:
                self._grace_ends_s = time.monotonic() + self._job.grace_s
            for worker in self.workers:
                worker.process.terminate()

    def _is_grace_over(self) -> bool:
        """Whether who stops this process may not wait any longer: it still has to end the trials."""
        if self._grace_ends_s is None or time.monotonic() < self._grace_ends_s:
            return False
        log.warning(
            "--grace-s %g: the time is up; what could not be saved is trained again, from the checkpoint before",
            self._job.grace_s,
        )
        self._grace_ends_s = None
        return True

    def _look_beside(self, worker: _Worker) -> None:
        """Where one that trains along has ended, the worker ends too, or is killed: it would wait for it for ever."""
        ended = [process.exitcode for process in worker.processes[1:] if not process.is_alive()]
        if not ended:
            return
        now_s = time.monotonic()
        worker.parting_s = worker.parting_s or now_s
        is_killed = any(code is not None and code < 0 for code in ended)
        if is_killed or now_s - worker.parting_s > PARTING_S:
            _kill_all(worker)
            worker.process.join()

    def _start(self, slot: int) -> _Worker:
        pulse = Pulse(self._context, self._job.hang_timeout_s)
        output = None if self._watcher is None else Output(self._context)
        started, count = next(self._started), self._job.processes
        stacks = [self._folder / f"stacks-{started}-{rank}.txt" for rank in range(count)]
        rendezvous = self._folder / f"rendezvous-{started}" if count > 1 else None
        processes = []
        for rank in range(count):
            place = slot // self._job.workers_per_gpu * count + rank
            device = self._devices[place % len(self._devices)] if self._devices else None
            arguments = (self._job, pulse, stacks[rank], device, os.getpid(), logging.getLogger().level, output)
            processes.append(self._start_process((*arguments, rank, rendezvous)))
        if self._watcher is not None and output is not None:
            output.started()
            self._watcher.started(slot, pulse.place, output)
        return _Worker(processes=processes, slot=slot, pulse=pulse, stacks=stacks)

    def _start_process(self, arguments: tuple[Any, ...]) -> ForkServerProcess:
        process = self._context.Process(target=work_as_process, args=arguments, daemon=False)
        for last in (False, False, True):
            try:
                with signals.blocked():  # a forkserver that has died is started anew here
                    process.start()
                break
            except (EOFError, ConnectionError):  # it is dying right now
                if last:
                    raise
                process = self._context.Process(target=work_as_process, args=arguments, daemon=False)
        return process

    def _ended(self, worker: _Worker) -> None:
        process = worker.process
        if process.exitcode == DONE:
            self.done = True
            return
        if process.exitcode == LEFT:
            return
        if process.exitcode == GIVEN_UP:
            if self._stopping:
                return
            raise ThawError("a worker could not go on; its reason stands above")
        if process.exitcode == UNSAVED:
            self._stop.ask(UNSAVED_REASON)
            return
        if process.exitcode == FORKSERVER_GONE:
            self._end_orphan(process)
        # Else what it lost would wait until a worker looks for more to do.
        killed_for_memory = process.exitcode == -signal.SIGKILL and self._oom_kills.any_new()
        ended = PREEMPTED if self._stopping else OUT_OF_MEMORY if killed_for_memory else LOST
        try:
            had_work = self._had_work(process)
            self._study.close_dead(ended)
        except Exception as error:  # noqa: BLE001  the database may be away; the next turn tries again
            log.warning("the study database cannot be reached: %s", " ".join(str(error).split()))
            self._unclosed = ended
            had_work = True
        # A signal to the whole group may reach a worker first: then this process is being stopped as well.
        if self._stopping or (process.exitcode == STOPPED and self._stop.wait(TICK_S)):
            return
        if process.exitcode != SPENT:
            self._idle_deaths = 0 if had_work else self._idle_deaths + 1
            if self._idle_deaths > DEATHS_IN_A_ROW * self._job.workers:
                raise ThawError(f"workers died {self._idle_deaths} times in a row (last exit code {process.exitcode})")
            log.warning("a worker died (exit code %s); another continues its work", process.exitcode)
        self.workers.append(self._start(worker.slot))

    def _had_work(self, process: BaseProcess) -> bool:
        owners = (trial.user_attrs.get("worker") for trial in self._study.trials())
        return any(owner is not None and owner["pid"] == process.pid for owner in owners)

    def _end_hung(self, worker: _Worker, still_s: float) -> None:
        """Takes its trial away first: it may wake up at any moment, and must find that it has lost it."""
        process = worker.process
        assert process.pid is not None
        log.error("a worker has stood still for %.0f s: it is killed", still_s)
        run_id, stacks = None, ""
        try:
            run_id = end_hung(self._study, process.pid, still_s)
            stacks = _all_stacks(worker)
        except Exception as error:  # noqa: BLE001  stores and servers raise what they like
            log.warning("what stands still cannot be recorded: %s", " ".join(str(error).split()))
        # In any case: stopped in the middle of a write, it is itself what keeps everybody from the database.
        _kill_all(worker)
        if run_id is not None:
            try:
                runs.log_text(run_id, stacks, "stacks.txt")
            except Exception as error:  # noqa: BLE001  the same
                log.warning("stacks.txt cannot be kept: %s", " ".join(str(error).split()))

    def _end_orphan(self, process: BaseProcess) -> None:
        """Lets a worker whose forkserver has died take its checkpoint: its end cannot be told from its exit code."""
        try:
            orphan = psutil.Process(process.pid)
            orphan.terminate()
            orphan.wait()
        except psutil.NoSuchProcess:
            pass


def _kill_all(worker: _Worker) -> None:
    for process in worker.processes:
        if process.is_alive():
            _kill(process)


def _kill(process: BaseProcess) -> None:
    """Kills a process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()


def _all_stacks(worker: _Worker) -> str:
    """The stacks of the worker, and of those that train along: one of them may be what the others wait for."""
    if len(worker.processes) == 1:
        return _stacks(worker.process.pid or 0, worker.stacks[0])
    alive = [(rank, one.pid) for rank, one in enumerate(worker.processes) if one.pid is not None and one.is_alive()]
    return "\n".join(f"rank {rank}:\n{_stacks(pid, worker.stacks[rank])}" for rank, pid in alive)


def _stacks(pid: int, file: Path) -> str:
    """The stacks of all threads of a worker, which its faulthandler writes without the interpreter's help."""
    os.kill(pid, DUMP_SIGNAL)
    before, text = "", ""
    for _ in range(DUMP_TICKS):
        time.sleep(DUMP_TICK_S)
        before, text = text, file.read_text(errors="replace") if file.exists() else ""
        if text and text == before:
            return text
    return text or "none: the process did not answer; it may have been stopped, or wait for a device\n"
