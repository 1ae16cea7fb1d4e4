"""Signals to a whole process group, as Slurm and Ctrl-C send them: the trainer obeys, its helpers outlive it."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pipeline import signals
from pipeline.signals import STOPPING, Interrupted, StopRequest
from tests.integration.commands import PATIENCE_S, ROOT, signal_mask, wait_until, wait_until_gone

# A process that trains, in short. It says where it is, and waits for a line.
TRAINER = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset
from pipeline.batches import Feeds
from pipeline.signals import StopRequest

class Data(Dataset):
    def __init__(self, size):
        self.size = size
    def __len__(self):
        return 128
    def __getitem__(self, index):
        return bytes(self.size)

def say_and_wait(line):
    print(line, flush=True)
    sys.stdin.readline()

stop = StopRequest()
stop.watch()
feeds = Feeds()
# What is waiting to be handed over is more than fits into a pipe.
loader = DataLoader(Data(100_000), num_workers=2, batch_size=4, persistent_workers=PERSISTENT)
validation = DataLoader(Data(10), num_workers=2, batch_size=4)
batches = feeds.open(loader, key="0", skip=0, saved=None).iterator
next(batches)
say_and_wait("training")
count = 1 + sum(1 for _ in batches)
batches = iter(validation)
next(batches)
say_and_wait("validating")
count += 1 + sum(1 for _ in batches)
print(count, stop.reason, flush=True)
"""


class Trainer:
    """A process with loaders, the leader of a group of its own."""

    def __init__(self, *, persistent: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER.replace("PERSISTENT", str(persistent))],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)
        wait_until(lambda: not signal_mask(self.process.pid, "ShdPnd") >> (number - 1) & 1, "the trainer takes it")

    def close(self) -> None:
        workers = self.workers() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(PATIENCE_S)
        wait_until_gone(workers)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(params=[False, True], ids=["workers_for_an_epoch", "persistent_workers"])
def trainer(request: pytest.FixtureRequest) -> Iterator[Trainer]:
    process = Trainer(persistent=request.param)
    yield process
    process.close()


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_workers_of_every_loader_outlive_a_signal_to_the_whole_group(trainer: Trainer, number: signal.Signals) -> None:
    assert trainer.line() == "training"
    trainer.signal_group(number)
    trainer.go_on()
    assert trainer.line() == "validating"
    trainer.signal_group(number)  # impatient users press Ctrl-C again
    trainer.go_on()
    assert trainer.line() == f"64 {number.name}"
    assert trainer.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("place", ["training", "validating"])
def test_a_loaders_workers_end_when_their_trainer_is_killed(trainer: Trainer, place: str) -> None:
    while trainer.line() != place:
        trainer.go_on()
    workers = trainer.workers()
    assert len(workers) >= 2
    trainer.process.kill()
    trainer.process.wait(PATIENCE_S)
    wait_until_gone(workers)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = [signal.getsignal(number) for number in STOPPING]
    yield StopRequest()
    for number, handler in zip(STOPPING, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_the_first_signal_interrupts_and_no_other_disturbs_what_follows(
    stop: StopRequest, number: signal.Signals
) -> None:
    stop.interrupt()
    with pytest.raises(Interrupted, match=number.name):
        signal.raise_signal(number)
    for later in STOPPING:
        signal.raise_signal(later)
    assert stop.reason == number.name


def test_an_interruption_is_no_exception_that_a_handler_of_errors_takes(stop: StopRequest) -> None:
    stop.interrupt()

    def careless() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # noqa: BLE001  as users write it
            pytest.fail("caught")

    with pytest.raises(Interrupted):
        careless()


def test_in_a_deferred_block_a_signal_is_only_noted(stop: StopRequest) -> None:
    stop.interrupt()
    with stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason == "SIGTERM"
        assert stop.wait(0)
    signal.raise_signal(signal.SIGINT)
    assert stop.reason == "SIGTERM"


def test_the_first_reason_to_stop_stays_and_wakes_who_waits(stop: StopRequest) -> None:
    woken: list[bool] = []
    waiting = threading.Thread(target=lambda: woken.append(stop.wait(PATIENCE_S)))
    waiting.start()
    stop.ask("timeout")
    stop.ask("something else")
    waiting.join()
    assert woken == [True]
    assert stop.reason == "timeout"


def helper(pipe: Connection) -> None:
    signals.obey_parent_only()
    pipe.send("ready")
    while True:
        pipe.send(pipe.recv())


@pytest.fixture
def echo() -> Iterator[tuple[multiprocessing.Process, Callable[[str], str]]]:
    """A helper process of this one, and what it answers."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=helper, args=(its,))
    with signals.blocked():
        process.start()
    assert mine.recv() == "ready"

    def ask(word: str) -> str:
        mine.send(word)
        return mine.recv()

    yield process, ask
    process.kill()
    process.join()
    for end in (mine, its):
        end.close()


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_helper_obeys_its_parent_and_no_stranger(
    echo: tuple[multiprocessing.Process, Callable[[str], str]], number: signal.Signals
) -> None:
    process, ask = echo
    assert process.pid is not None
    subprocess.run(["kill", f"-{number.name.removeprefix('SIG')}", str(process.pid)], check=True)
    wait_until(lambda: not signal_mask(process.pid, "ShdPnd"), "it takes the signal")
    assert ask("still there?") == "still there?"
    os.kill(process.pid, number)
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def orphan(pipe: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    pipe.send(os.getpid())
    parent.join()
    signals.obey_parent_only()  # too late to see the parent die
    threading.Event().wait()


def dying(pipe: Connection) -> None:
    with signals.blocked():
        multiprocessing.get_context("fork").Process(target=orphan, args=(pipe,)).start()
    os._exit(0)


class Orphan:
    """The `worker_init_fn` of a user's own loader, in a worker whose trainer dies while it starts."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, worker: int) -> None:
        trainer = os.pidfd_open(os.getppid())
        self._pipe.send(os.getpid())
        select.select([trainer], [], [])


def dying_trainer(pipe: Connection) -> None:
    StopRequest().watch()
    started, starting = multiprocessing.get_context("fork").Pipe(duplex=False)
    data = TensorDataset(torch.zeros(1))
    batches = iter(DataLoader(data, num_workers=1, worker_init_fn=Orphan(starting), multiprocessing_context="fork"))
    pipe.send(started.recv())
    os._exit(0 if batches else 1)  # an iterator that nobody held would have ended its worker


@pytest.mark.parametrize("parent", [dying, dying_trainer])
def test_a_helper_whose_parent_died_while_it_started_ends_as_well(parent: Callable[[Connection], None]) -> None:
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=parent, args=(its,))
    process.start()
    helper = psutil.Process(mine.recv())
    process.join()
    wait_until_gone([helper])
    for end in (mine, its):
        end.close()


def test_blocked_signals_arrive_when_the_block_ends(stop: StopRequest) -> None:
    def sent_meanwhile() -> None:
        with signals.blocked():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.reason is None

    stop.interrupt()
    with pytest.raises(Interrupted):
        sent_meanwhile()
    assert stop.reason == "SIGTERM"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOPPING)


def test_nothing_but_the_standard_library_is_loaded_before_signals_are_heard() -> None:
    """`python -m pipeline` listens before it loads what takes seconds."""
    script = "import sys; import pipeline.__main__; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(ROOT), capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert not {"torch", "mlflow", "optuna", "pandas", "numpy", "sklearn"} & set(found.stdout.split())


def test_a_second_ctrl_c_asks_to_end_at_once_and_the_same_one_passed_on_does_not(monkeypatch):
    now_s = iter([10.0, 10.5, 11.5])
    monkeypatch.setattr("pipeline.signals.time.monotonic", lambda: next(now_s))
    stop = StopRequest()
    again, term = signal.SIGINT, signal.SIGTERM
    for number, expected in ((again, False), (term, False), (again, False), (term, False), (again, True)):
        stop._on_signal(number, None)
        assert stop.at_once is expected
    assert stop.reason == "SIGINT"
