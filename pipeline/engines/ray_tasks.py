"""Workers as tasks of a Ray cluster: one task a segment, on whatever node has the resources.

Ray decides where and when a task runs. The study decides all else, as it does for workers of one machine: Ray neither
takes a trial away from a node that was cut off nor sees that training hangs, and what it would try again by itself
would be trained twice. So no task is retried by Ray, and this process, the driver, only asks the study how much there
is to do, and submits as many tasks.

A task is the supervisor of `local`, for one worker and one segment. Training is not done in Ray's own process: that is
used again for other tasks, its main thread, its SIGINT (which is how Ray cancels) and its SIGTERM are Ray's, and a loop
that hangs could not be ended but with it. As a child of it a worker has the same guarantees as on one machine: it is
fresh, it is watched from outside, and it takes its checkpoint when it is asked to stop, or when the process above it is
gone, whether that was killed, or ended by Ray because its node or the driver has died. The forkserver stays for the
next task.

The experiment's file, and what it imports, is where it was on the driver's machine, or at the end of that path under
the task's working directory, which is how a `working_dir` of Ray's comes there. It must be the same to the byte.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.databases import sqlite_file
from pipeline.engines import local
from pipeline.engines.child import Job, configure_logging
from pipeline.errors import ThawError, UsageError
from pipeline.signals import Interrupted, StopRequest
from pipeline.sweep.opening import found_here
from pipeline.sweep.patience import patient
from pipeline.sweep.schedule import open_segments
from pipeline.sweep.storage import GRACE_S
from pipeline.sweep.study import Study

log = logging.getLogger("pipeline")
ADDRESS = "RAY_ADDRESS"
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TICK_S = 1.0
HEAD_GONE_S = 30.0  # after a minute Ray ends the driver as it stands; until then a head may come back


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What Ray sets aside for each task, as its user has said it; None for what suits its processes."""

    cpus: float | None = None
    gpus: float | None = None

    def cpus_for(self, processes: int) -> float:
        return float(processes) if self.cpus is None else self.cpus

    def gpus_for(self, processes: int, *, workers_per_gpu: int, there: bool) -> float:
        """`there`: whether the cluster has any."""
        if self.gpus is not None:
            return self.gpus
        return (float(processes) if processes > 1 else 1 / workers_per_gpu) if there else 0.0

    def threads(self, processes: int) -> int:
        """Torch's threads of each process."""
        return max(1, int(self.cpus_for(processes) / processes))


@dataclass(frozen=True, kw_only=True)
class _Driver:
    """What a task has to know of who submitted it."""

    host: str
    folder: str
    log_level: int


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a task has ended.

    Attributes:
        stopped: what has asked it to, if anything has.
        error: why it cannot be done here, nor elsewhere.
    """

    stopped: str | None
    error: str | None = None


def run(job: Job, resources: Resources, stop: StopRequest) -> bool:
    """Has the segments trained until nothing is left to do (True) or everything was stopped (False).

    Raises:
        UsageError: there is no Ray, or no cluster that may be used.
        ThawError: tasks cannot be done, or are lost again and again without getting anywhere.
    """
    deadline_s = None if job.timeout_s is None else time.monotonic() + job.timeout_s
    with _connected(stop):
        tasks = _Tasks(job, resources, stop)
        try:
            while stop.reason is None and tasks.turn():
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    log.info("--timeout: the time is up; everything takes its checkpoint")
                    stop.ask("timeout")
        finally:
            tasks.stop()
    return stop.reason is None


def work_as_task(job: Job, driver: _Driver) -> _Outcome:
    """The whole life of a task: one segment, if there is still one to claim."""
    if Path(driver.folder).is_dir():
        os.chdir(driver.folder)
    configure_logging(driver.log_level)
    stop = StopRequest()
    try:
        if socket.gethostname() != driver.host and (sqlite_file(job.storage) or sqlite_file(job.tracking_uri)):
            raise UsageError(
                f"{socket.gethostname()} cannot read the databases of {driver.host}, which are files: give a "
                "PostgreSQL database as --storage, and a server as MLFLOW_TRACKING_URI"
            )
        here = replace(job, file=found_here(job.study, str(job.file)))
        with stop.alone():
            local.run(here, local.start_forkserver("ray"), stop)
    except ThawError as error:
        return _Outcome(stopped=stop.reason, error=str(error))
    return _Outcome(stopped=stop.reason)


class _Tasks:
    """The tasks of a job, and what becomes of them."""

    def __init__(self, job: Job, resources: Resources, stop: StopRequest) -> None:
        import ray

        self._job, self._stop = job, stop
        self._task_job = replace(job, workers=1, timeout_s=None, until="segment", own_session=True)
        self._study = patient(Study.load(job.study, job.storage), job.keeping.outage_s)
        self._driver = _Driver(host=socket.gethostname(), folder=str(Path.cwd()), log_level=logging.getLogger().level)
        cluster: Any = ray  # which has a type for some of its functions
        # Ray's own process keeps no device: it is a process below it that has used it, and has ended.
        self._submit = ray.remote(
            num_cpus=resources.cpus_for(job.processes),
            num_gpus=resources.gpus_for(
                job.processes, workers_per_gpu=job.workers_per_gpu, there="GPU" in cluster.cluster_resources()
            ),
            max_retries=0,
            max_calls=0,
        )(work_as_task)
        self._running: list[Any] = []
        self._losses, self._trials = 0, 0
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head, self._head_s = (host, int(port)), time.monotonic()

    def turn(self) -> bool:
        """Submits what can be, and waits for a task to end, for at most a tick. False when nothing is left to do."""
        if len(self._running) < self._job.workers:
            self._study.close_dead()
            wanted = open_segments(self._study, only=self._job.only, max_total_epochs=self._job.max_total_epochs)
            if wanted is None and not self._running:
                return False
            self._start(wanted or 0)
        self._wait()
        self._look_at_head()
        return True

    def stop(self) -> None:
        """Has every task take its checkpoint and leave; what does not within the grace is left behind."""
        import ray

        grace_s = GRACE_S if self._job.grace_s is None else self._job.grace_s
        ends_s = time.monotonic() + grace_s + 2 * TICK_S  # a task hears of it later, and has all of its grace
        for task in self._running:
            ray.cancel(task)
        while self._running and time.monotonic() < ends_s and not self._stop.at_once:
            with suppress(ThawError):  # one is enough, and the first stands above
                self._wait()
        if self._running:
            log.warning(
                "%d tasks have not answered: whoever goes on starts from their last checkpoints", len(self._running)
            )
        for task in self._running:
            ray.cancel(task, force=True)

    def _start(self, wanted: int) -> None:
        """As many tasks as there are segments to claim, less those that have yet to claim theirs."""
        claimed = sum(one.ended is None and one.head.state.name == "RUNNING" for one in self._study.lineages().values())
        to_claim = max(0, len(self._running) - claimed)
        for _ in range(min(self._job.workers - len(self._running), wanted - to_claim)):
            self._running.append(self._submit.remote(self._task_job, self._driver))

    def _wait(self) -> None:
        import ray

        if not self._running:
            self._stop.wait(TICK_S)
            return
        ended, self._running = ray.wait(self._running, timeout=TICK_S)
        for task in ended:
            self._ended(task)

    def _look_at_head(self) -> None:
        try:
            socket.create_connection(self._head, TICK_S).close()
            self._head_s = time.monotonic()
        except OSError:
            if time.monotonic() - self._head_s > HEAD_GONE_S:
                log.error("the head of the Ray cluster has been gone for %.0f s", HEAD_GONE_S)
                self._stop.ask("the loss of the Ray cluster's head")

    def _ended(self, task: Any) -> None:
        import ray

        try:
            outcome: _Outcome = ray.get(task)
        except ray.exceptions.TaskCancelledError:
            return
        except ray.exceptions.RayTaskError as error:
            raise ThawError(
                f"a node of the cluster could not run a task: {_first_line(error.cause)}; each node needs this package "
                "and what it needs, installed or by Ray's runtime_env"
            ) from error
        except ray.exceptions.RayError as error:
            self._lost(error)
            return
        self._losses = 0
        if self._stop.reason is None:
            if outcome.error is not None:
                raise ThawError(outcome.error)
            if outcome.stopped == local.UNSAVED_REASON:
                self._stop.ask(outcome.stopped)

    def _lost(self, error: Exception) -> None:
        """Its process or its node is gone, or never came to be."""
        trials = len(self._study.trials())
        self._losses = 1 if trials > self._trials else self._losses + 1
        self._trials = trials
        reason = _first_line(error)
        if self._losses > local.DEATHS_IN_A_ROW * self._job.workers:
            raise ThawError(f"tasks were lost {self._losses} times in a row: {reason}")
        log.warning("a task was lost (%s); another continues its work", reason)


@contextmanager
def _connected(stop: StopRequest) -> Iterator[None]:
    """A cluster that others have started, where RAY_ADDRESS says; without it, Ray on this machine for this block."""
    address = os.environ.get(ADDRESS) or "local"
    _prepare(address)
    ray = _ray()
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address, logging_level=logging.WARNING, **own)
    except SystemExit as error:  # Ray's own answer to SIGTERM, from its first line on
        stop.ask("SIGTERM")
        raise Interrupted("SIGTERM") from error
    except Exception as error:  # whatever Ray raises: there is no type for what keeps it from starting
        raise ThawError(f"{ADDRESS} {address}: {_first_line(error)}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    try:
        if address == "auto":
            _refuse_without_token(ray.get_runtime_context().gcs_address)
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'thaw[ray]'") from error
    return ray


def _prepare(address: str) -> None:
    """Sets what Ray reads as it is imported. Raises: UsageError, for an address that is not to be used."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # two configurations say the same, but for a number
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # what makes it listen on loopback alone
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    elif address.startswith("ray://"):
        raise UsageError(f"{ADDRESS} {address}: give the cluster's own address, HOST:6379; a client's ends with it")
    elif address != "auto":
        _refuse_without_token(address)


def _refuse_without_token(address: str) -> None:
    """Raises UsageError for a cluster that listens to a network, and to anybody there."""
    if _is_loopback(address):
        return
    has_token = any(name in os.environ for name in TOKENS) or (Path.home() / ".ray" / "auth_token").is_file()
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "disabled" or not has_token:
        raise UsageError(
            f"{ADDRESS} {address}: that cluster listens to a network, where whoever reaches it without a token runs "
            "what he likes; run `ray get-auth-token --generate` once, copy ~/.ray/auth_token to each machine, and "
            "start Ray there with RAY_AUTH_MODE=token"
        )


def _is_loopback(address: str) -> bool:
    host = address.rpartition("//")[2].rpartition(":")[0].strip("[]")
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
