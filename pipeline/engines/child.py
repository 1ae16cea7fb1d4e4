"""A worker as a process of this machine: started by the supervisor, stopped by signals, watched from outside."""

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.engines.output import Output
from pipeline.errors import ThawError
from pipeline.ranks import connect as connect_ranks
from pipeline.signals import StopRequest
from pipeline.sweep.following import follow
from pipeline.sweep.patience import Patience, Unsaved
from pipeline.sweep.pulse import Pulse
from pipeline.sweep.segment import Keeping
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Until, work
from pipeline.tracking.server import connect, sample_system

log = logging.getLogger("pipeline")
# Exit codes: nothing is left to do; it cannot go on; what it trains cannot be saved; a fresh process has to go on; it
# was to do no more than it has done; it was stopped. 1 is Python's own, for an exception that nobody has foreseen:
# that worker has died.
DONE, GIVEN_UP, UNSAVED, SPENT, LEFT, STOPPED = 0, 3, 4, 5, 6, 75
DUMP_SIGNAL = signal.SIGRTMAX - 1  # what makes a worker write its stacks; the lower ones are users' and schedulers'
LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers of a study are to do.

    Attributes:
        study, storage: the study's name, and the URL of its database.
        tracking_uri: of MLflow; a forkserver has the environment of the moment when it was started.
        workers: how many processes.
        keeping: how checkpoints are kept.
        timeout_s: seconds after which everything stops resumably; None for never.
        hang_timeout_s: how long training may stand still; None for what `Pulse` says.
        workers_per_gpu: how many workers share a device before the next one gets some.
        only: the configurations to work on; None for all.
        max_total_epochs: what all configurations together may have trained; None for any number.
        file: the experiment on this machine; None where the study says.
        until: how long they work, unless they are stopped.
        grace_s: how long a worker that is stopped may take for its checkpoint; None for as long as it takes.
        system_metrics: whether MLflow samples CPU, memory and GPU while a segment's run is the active one.
        processes: how many train one configuration together: the worker, and others that train along.
        own_session: whether a worker leaves the process group that it was started in, which may be killed as a whole.
    """

    study: str
    storage: str
    tracking_uri: str
    workers: int
    keeping: Keeping
    timeout_s: float | None = None
    hang_timeout_s: float | None = None
    workers_per_gpu: int = 1
    only: Collection[int] | None = None
    max_total_epochs: int | None = None
    file: Path | None = None
    until: Until = "over"
    grace_s: float | None = None
    system_metrics: bool = False
    processes: int = 1
    own_session: bool = False


def work_as_process(
    job: Job,
    pulse: Pulse,
    stacks: Path,
    device: str | None,
    supervisor: int,
    log_level: int,
    output: Output | None,
    rank: int = 0,
    rendezvous: Path | None = None,
) -> None:
    """The whole life of a worker process; it exits with one of the codes above. `output` takes what it writes.

    Or, with a rank above 0, of one that trains along with a worker: both meet at the file `rendezvous`.
    """
    lead_back = None if output is None else output.take()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if job.own_session:
        os.setsid()
    faulthandler.register(DUMP_SIGNAL, file=stacks.open("w"), all_threads=True)
    stop = StopRequest()
    stop.watch()
    # A process from a forkserver starts its own by it as well; loaders here work as in a plain script.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    # The first temporary name is made under a lock: a loader's worker that is forked while the checkpoint writer
    # holds it would wait for it for ever.
    with tempfile.TemporaryDirectory():
        pass
    if rank == 0:
        pulse.keep()
    _watch_parent(stop, pulse, lead_back)
    configure_logging(log_level if rank == 0 else max(log_level, logging.WARNING))
    if job.system_metrics and rank == 0:
        sample_system()
    try:
        ranks = None if rendezvous is None else connect_ranks(rank, job.processes, rendezvous, stop)
        if ranks is not None and rank > 0:
            connect(job.tracking_uri)
            follow(ranks, stop, stacks.parent / f"{stacks.stem}-scratch")
            sys.exit(DONE)
        study = _open(job, stop)
        study.supervisor = supervisor
        ended = work(
            study,
            stop,
            pulse=pulse,
            keeping=job.keeping,
            only=job.only,
            max_total_epochs=job.max_total_epochs,
            here=job.file,
            until=job.until,
            ranks=ranks,
        )
    except ThawError as error:
        log.error("%s", error)
        sys.exit(UNSAVED if isinstance(error, Unsaved) else GIVEN_UP)
    finally:
        # Loaders' workers that are still there would be waited for at exit, and obey no signal that asks. Torch's
        # handler would take their end for a fault.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
    sys.exit({"done": DONE, "stopped": STOPPED, "spent": SPENT, "left": LEFT}[ended])


def _open(job: Job, stop: StopRequest) -> Study:
    """The study, which the supervisor has found a moment ago: whatever fails now is an outage. Raises: Unsaved."""
    patience = Patience(job.keeping.outage_s)
    while True:
        try:
            connect(job.tracking_uri)
            return Study.load(job.study, job.storage)
        except Exception as error:  # noqa: BLE001  stores and servers raise what they like
            patience.failed(f"study {job.study!r} cannot be opened", error)
        stop.wait(patience.pause_s)


def _watch_parent(stop: StopRequest, pulse: Pulse, lead_back: Callable[[], None] | None) -> None:
    """When the supervisor dies, its workers take their checkpoints and leave; no orphan trains on, nor hangs on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        if lead_back is not None:
            lead_back()
        stop.ask("the supervisor is gone")
        log.warning("the supervisor is gone: a worker takes its checkpoint and leaves")
        while pulse.still_s() is None:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="supervisor watch", daemon=True).start()


def configure_logging(level: int) -> None:
    """Plain lines of ours on stderr; of the libraries only warnings."""
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("optuna", "mlflow", "alembic", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Whole statements, where a database is away; who waits for it says so on one line.
    logging.getLogger("optuna.storages").setLevel(logging.ERROR)
