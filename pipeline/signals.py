"""Signals: what a process that must stop does, and what its helpers do meanwhile.

Slurm and Ctrl-C signal every process of the group at once. The process that trains needs its helpers
(a loader's workers) until its checkpoint is taken, so they must outlive the signal that it obeys.
"""

import multiprocessing.util
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
PARENT_CHECK_S = 2.0
SAME_S = 1.0

_obedient: set[int] = set()  # this process, once it obeys its parent only, and those before it that do


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived where nothing has to be saved first. Exit code 75.

    No `Exception`, so that no handler of errors takes it for one.
    """


class StopRequest:
    """Whether this process was asked to stop, and by what: the first SIGTERM or SIGINT, or a call of `ask`.

    Attributes:
        reason: what has asked first; None while nothing has.
        at_once: whether a second SIGINT says that nothing is to be waited for. One that follows within a second is the
            same Ctrl-C, passed on by whoever started this process.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.at_once = False
        self._raising = False
        self._interrupted_s: float | None = None
        self._event = threading.Event()

    def interrupt(self) -> None:
        """From now on a signal also raises `Interrupted` in the main thread, except in a `deferred` block."""
        self._raising = True
        for number in STOPPING:
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """From now on signals do nothing."""
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def watch(self) -> None:
        """From now on signals only set `reason`, and no process that this one starts is hit by them.

        They stay blocked, which every process started here inherits: the workers of any loader, whoever made
        it. A thread takes them. Those that multiprocessing forks end with this process: torch's own watch of a
        loader's worker sees nothing when the trainer dies before it has begun.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        multiprocessing.util.register_after_fork(self, lambda _: obey_parent_only())

        def take() -> None:
            while True:
                self.ask(signal.Signals(signal.sigwait(STOPPING)).name)

        threading.Thread(target=take, name="signals", daemon=True).start()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In this block signals set `reason` and do nothing else; before and after it they are somebody else's."""
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number in STOPPING:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask(self, reason: str) -> None:
        """Asks to stop; the first reason stays."""
        if self.reason is None:
            self.reason = reason
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Sleeps until asked to stop, or that long. Returns whether asked."""
        return self._event.wait(timeout_s)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this block a signal sets `reason` and nothing else."""
        before, self._raising = self._raising, False
        try:
            yield
        finally:
            self._raising = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.reason is None
        if number == signal.SIGINT:
            now_s = time.monotonic()
            self.at_once |= self._interrupted_s is not None and now_s - self._interrupted_s >= SAME_S
            self._interrupted_s = self._interrupted_s or now_s
        self.ask(signal.Signals(number).name)
        if first and self._raising:
            raise Interrupted(self.reason)


@contextmanager
def blocked() -> Iterator[None]:
    """Holds SIGTERM and SIGINT back; processes started inside inherit that and cannot be hit while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only() -> None:
    """For a helper process started while signals were `blocked`: only its parent's signals end it, and its death.

    The signals stay blocked; a thread takes them one by one and looks at who sent them. It ends the process when
    the parent has died: a loader's worker that waits to hand over its batch would wait for ever. Once is enough.
    """
    if os.getpid() in _obedient:
        return
    _obedient.add(os.getpid())
    # As its parent has told it: os.getppid() says something else if the parent died before this line.
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    pid = parent.pid
    try:
        life = os.pidfd_open(pid)  # readable when it has ended
    except ProcessLookupError:
        os._exit(0)

    def watch() -> None:
        while not select.select([life], [], [], 0)[0]:
            taken = signal.sigtimedwait(STOPPING, PARENT_CHECK_S)
            if taken is not None and taken.si_pid == pid:
                break
        os._exit(0)

    threading.Thread(target=watch, name="signals", daemon=True).start()
