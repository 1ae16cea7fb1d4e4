"""Two machines, each with an address of its own, and a link between them; run by test_cut_off.py where nothing else is.

A machine is a network namespace with a host name: for each other, their processes are elsewhere.
"""

import ctypes
import multiprocessing
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from optuna.trial import TrialState

from pipeline.sweep.opening import give_threads
from tests.chaos.chaos import Fence
from tests.chaos.checker import assert_survived
from tests.integration.commands import PATIENCE_S, Workplace, wait_until
from tests.integration.preloaded import PRELOADED
from tests.integration.sweeps import Sweep
from tests.postgres import PostgresServer
from tests.tracking_server import TrackingServer

SERVERS, HERE, THERE = "10.77.0.1", "10.77.1.1", "10.77.1.2"
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
HEARTBEAT_S, GRACE_S = 1, 5  # instead of 10 and 120, on both machines
CONFIGURATIONS = 3


def work_here(environment: Mapping[str, str], study: tuple[str, str], pipe: Connection) -> None:
    """Works on a study until nothing is left of it, and sends what `work` says.

    Its grace is short. It is a constant of the storage, and no option: all machines must have the same.
    """
    os.environ |= environment
    from pipeline.signals import StopRequest
    from pipeline.sweep import segment, storage
    from pipeline.sweep import study as studies
    from pipeline.sweep.pulse import Pulse
    from pipeline.sweep.segment import Keeping
    from pipeline.sweep.worker import work
    from pipeline.tracking.server import connect

    storage.HEARTBEAT_S = segment.HEARTBEAT_S = HEARTBEAT_S
    storage.GRACE_S = studies.GRACE_S = GRACE_S
    connect()
    pulse = Pulse(multiprocessing.get_context(), None)
    pipe.send(work(studies.Study.load(*study), StopRequest(), pulse=pulse, keeping=Keeping()))


def work_elsewhere(environment: Mapping[str, str], study: tuple[str, str], pipe: Connection) -> None:
    """The same as another machine, as soon as that is on the network."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWUTS | CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    socket.sethostname("elsewhere")
    pipe.send(None)
    pipe.recv()
    work_here(environment, study, pipe)


class Worker:
    """A process that works on a study; as `Progress` wants to have what it listens to.

    Attributes:
        ended_fd: readable once it has ended.
        pipe: what it sends.
    """

    output = "what it logs stands above"

    def __init__(self, target: Callable[..., None], environment: Mapping[str, str], *study: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=target, args=(environment, study, theirs))
        self.process.start()
        theirs.close()
        self.ended_fd = self.process.sentinel

    def result(self) -> str:
        """What `work` has returned."""
        assert self.pipe.poll(PATIENCE_S)
        return self.pipe.recv()

    def connect(self) -> None:
        """Links its machine, which is elsewhere, with this one."""
        self.pipe.recv()
        inside = ["nsenter", f"--target={self.process.pid}", "--net"]
        ip(f"link add here type veth peer name there netns {self.process.pid}")
        ip(f"addr add {HERE}/24 dev here")
        ip(f"addr add {THERE}/24 dev there", *inside)
        ip("link set lo up", *inside)
        ip("link set there up", *inside)
        ip("link set here up")
        ip(f"route add {SERVERS} via {HERE}", *inside)
        self.pipe.send(None)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def ip(words: str, *inside: str) -> None:
    subprocess.run([*inside, "ip", *words.split()], check=True)


@pytest.fixture
def servers() -> Iterator[tuple[PostgresServer, TrackingServer]]:
    """At an address that is the servers' own, whatever becomes of a link."""
    ip(f"addr add {SERVERS}/32 dev lo")
    postgres = PostgresServer(SERVERS)
    tracking = TrackingServer(host=SERVERS)
    yield postgres, tracking
    tracking.close()
    postgres.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*arguments) -> Worker:
        started.append(Worker(*arguments))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_who_is_cut_off_for_longer_than_the_grace_while_it_trains_has_lost_its_trial_when_it_is_back(
    tmp_path: Path, servers: tuple[PostgresServer, TrackingServer], start: Callable[..., Worker]
):
    postgres, tracking = servers
    place = Workplace(tmp_path / "work", tracking_uri=tracking.uri, storage_url=postgres.database())
    sweep = Sweep.of(place, "--configurations", str(CONFIGURATIONS), "--workers", "0", "--sampler", "random")
    sweep.finish()  # of opening it
    study = place.study("quick")
    give_threads(study, 1)

    def given(disk: str, gate: str = "") -> dict[str, str]:
        told = {"MLFLOW_TRACKING_URI": tracking.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        return {**told, "PIPELINE_SPOOL": str(tmp_path / disk), **sweep.environment(gate)}

    zombie = start(work_elsewhere, given("its disk", gate="1 3"), "quick", place.storage_url)
    zombie.connect()
    sweep.progress.wait_for_end_of(" 1 3", zombie)
    (lost,) = [trial for trial in study.trials() if trial.state is TrialState.RUNNING]
    ip("link set here down")  # nothing that is sent arrives, and nobody is told
    sweep.progress.open_gate()
    sweep.progress.wait_for_end_of(f" {lost.number} 2 5", zombie)

    other = start(work_here, given("another disk"), "quick", place.storage_url)
    taken = wait_until(lambda: (one := study.trials()[lost.number]).state.is_finished() and one, "it is taken away")
    assert (taken.user_attrs["ended"], taken.user_attrs["worker"]["host"].split()[0]) == ("lost", "elsewhere")
    ip("link set here up")
    assert (zombie.result(), other.result()) == ("done", "done")
    sweep.finish()
    fence = Fence(how="cut off", trial=taken)
    assert_survived(sweep, configurations=CONFIGURATIONS, fences=[fence], folder=tmp_path / "undisturbed")
    place.close()
