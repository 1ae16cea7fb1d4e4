"""Keeping a study's pages and pictures current while a command works: in a process of its own, behind all others.

It takes at most a hundredth of the time for each of the two, is not waited for while anything trains, and whatever
goes wrong in it is said once and ends nothing.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext

from pipeline import signals
from pipeline.report.refresh import Refresher
from pipeline.signals import StopRequest
from pipeline.sweep.study import Study
from pipeline.tracking import server

log = logging.getLogger("pipeline")
SHARE = 200  # a refresh is followed by so many times the processor time that it took: half a percent
FIRST_PICTURES_S = 200.0  # from the beginning: with what they import, the first cost about two seconds
NICENESS = 10
LAST_S, STOPPED_S = 120.0, 5.0  # how long the last refresh may take, and how long if the command is being stopped
LOOK_S = 0.1
EVERYTHING, PAGES = "everything", "pages"


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """What is kept current.

    Attributes:
        url: of the study's database.
        told: the URL that commands have to be told, None if they find it by themselves.
        every_s: seconds between two refreshes, at least; 0 for none at all.
    """

    study: str
    url: str
    told: str | None
    tracking_uri: str
    every_s: float


@contextmanager
def kept_current(job: ReportJob, context: ForkServerContext | None, stop: StopRequest) -> Iterator[None]:
    """In this block what MLflow shows of the study is kept current; at its end it is brought up to date once more."""
    if context is None or job.every_s <= 0:
        yield
        return
    ours, theirs = context.Pipe()
    process = context.Process(target=_keep, args=(job, theirs, logging.getLogger().level), daemon=False)
    try:
        with signals.blocked():
            process.start()
    except (OSError, EOFError) as error:
        log.warning("the study's pages in MLflow are not kept current: %s", error)
        yield
        return
    theirs.close()
    passing_on = threading.Thread(target=_pass_on, args=(ours,), name="report log", daemon=True)
    passing_on.start()
    try:
        yield
    finally:
        with stop.deferred():
            with suppress(OSError):  # it has died
                ours.send(PAGES if _is_urgent(stop) else EVERYTHING)
            until_s = time.monotonic() + LAST_S
            while process.is_alive() and not stop.at_once and time.monotonic() < until_s:
                process.join(LOOK_S)
                if _is_urgent(stop):
                    until_s = min(until_s, time.monotonic() + STOPPED_S)
            if process.is_alive():
                log.warning("the study's pages in MLflow are not up to date; `report --study %s` is", job.study)
                process.kill()
                process.join()
            passing_on.join(STOPPED_S)
            ours.close()


def _is_urgent(stop: StopRequest) -> bool:
    """Whether whoever stops the command may kill it soon; not so if its own time is up."""
    return stop.reason not in (None, "timeout")


def _pass_on(pipe: Connection) -> None:
    """Says here what the process has to say, until it has ended: there may be a view, which it knows nothing of."""
    with suppress(EOFError, OSError):
        while True:
            level, message = pipe.recv()
            log.log(level, "%s", message)


class _Said(logging.Handler):
    """Hands over what is to be said."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # nobody is left to hear it
            self._pipe.send((record.levelno, self.format(record)))


def _keep(job: ReportJob, orders: Connection, log_level: int) -> None:
    """The whole life of the process. Signals are blocked in it, as in the forkserver: it goes when it is told to."""
    logging.basicConfig(level=log_level, format="%(message)s", handlers=[_Said(orders)], force=True)
    logging.captureWarnings(True)
    for name in ("optuna", "mlflow", "alembic", "matplotlib", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.nice(NICENESS)
    parent = multiprocessing.parent_process()
    assert parent is not None
    keeper = _Keeper(job)
    now_s = time.monotonic()
    due_s = {keeper.pages: now_s + job.every_s, keeper.pictures: now_s + max(job.every_s, FIRST_PICTURES_S)}
    while True:
        wait_s = max(0.0, min(due_s.values()) - time.monotonic())
        ready = wait([orders, parent.sentinel], wait_s)
        if parent.sentinel in ready:
            return
        if orders in ready:
            order = orders.recv()
            keeper.last(everything=order == EVERYTHING)
            return
        for refresh, at_s in due_s.items():
            if time.monotonic() >= at_s and not orders.poll():
                began_s = time.process_time()
                refresh(orders.poll)
                pause_s = max(job.every_s, SHARE * (time.process_time() - began_s))
                due_s[refresh] = time.monotonic() + pause_s


class _Keeper:
    """Refreshes, and says once if that fails."""

    def __init__(self, job: ReportJob) -> None:
        self._job = job
        self._refresher: Refresher | None = None
        self._said = False

    def pages(self, stop: Callable[[], bool]) -> None:
        self._try(lambda refresher: refresher.pages())

    def pictures(self, stop: Callable[[], bool]) -> None:
        self._try(lambda refresher: refresher.pictures(stop=stop))

    def last(self, *, everything: bool) -> None:
        self._try(lambda refresher: refresher.pages())
        if everything:
            self._try(lambda refresher: refresher.everything())

    def _try(self, refresh: Callable[[Refresher], None]) -> None:
        try:
            if self._refresher is None:
                server.connect(self._job.tracking_uri)
                study = Study.load(self._job.study, self._job.url)
                self._refresher = Refresher(study, storage=self._job.told)
            refresh(self._refresher)
        except Exception as error:  # noqa: BLE001  stores, servers and plots raise what they like
            if not self._said:
                self._said = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                log.warning("what MLflow shows of study %r is not up to date: %s", self._job.study, reason)
