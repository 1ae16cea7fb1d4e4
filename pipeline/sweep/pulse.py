"""How a worker shows that training moves: to its supervisor at once, to other hosts by heartbeats in the database."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from statistics import median
from typing import Any

from pipeline.sweep.place import SharedPlace

MEDIAN_EPOCHS, LEAST_S = 10, 60.0
UNKNOWN_S = 3600.0  # while no epoch is known, and until a segment first moves: models are built, data are read
TICK_S = 1.0

log = logging.getLogger("pipeline")


class Pulse:
    """When training last moved, and how long it may stand still, on the clock of the machine; `place` says where it is.

    In shared memory, for the supervisor to read: a thread of the worker itself could not be trusted to look, because a
    loop that hangs in C code may hold the GIL for ever.
    """

    def __init__(self, context: BaseContext, hang_timeout_s: float | None) -> None:
        self._given_s = hang_timeout_s
        # When it moved, 0 before it ever did; for how long it may stand still. Always written in this order and read in
        # the other: so a new limit is never held against an old time.
        self._shared: Any = context.RawArray("d", [0.0, self._limit_s(LEAST_S)])
        self.place = SharedPlace(context)
        self._has_to_move = False

    def keep(self) -> None:
        """From now on a thread moves while training does not have to: a frozen process is seen at any time."""

        def run() -> None:
            while True:
                if not self._has_to_move:
                    self._shared[0] = time.monotonic()
                time.sleep(min(TICK_S, self._shared[1] / 4))

        threading.Thread(target=run, name="pulse", daemon=True).start()

    def begin(self) -> None:
        """Training starts, and has to move from here on."""
        self._shared[:] = time.monotonic(), self._limit_s(UNKNOWN_S)
        self._has_to_move = True

    def moved(self) -> None:
        """Training has moved."""
        self._shared[0] = time.monotonic()

    def expect(self, epochs_s: Collection[float]) -> None:
        """What is known of how long epochs take says from here on how long training may stand still."""
        if epochs_s:
            self._shared[1] = self._limit_s(max(LEAST_S, MEDIAN_EPOCHS * median(epochs_s)))

    def end(self) -> None:
        """Training does not have to move any more."""
        self._has_to_move = False
        self._shared[:] = time.monotonic(), self._limit_s(LEAST_S)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """In this block training waits for what has a patience of its own."""
        had_to_move, self._has_to_move = self._has_to_move, False
        try:
            yield
        finally:
            self._shared[0] = time.monotonic()
            self._has_to_move = had_to_move

    def has_moved_since(self, time_s: float) -> bool:
        return not self._has_to_move or bool(self._shared[0] > time_s)

    def _limit_s(self, otherwise_s: float) -> float:
        return otherwise_s if self._given_s is None else self._given_s

    def still_s(self) -> float | None:
        """For how long training has stood still, if that is longer than it may."""
        may_rest_s, moved_s = self._shared[1], self._shared[0]
        still_s = time.monotonic() - moved_s
        return still_s if moved_s and still_s > may_rest_s else None


class Heartbeats:
    """Beats from a thread of its own, every `every_s` seconds in which training has moved: a write may take longer."""

    def __init__(self, beat: Callable[[], None], pulse: Pulse, every_s: float, name: str) -> None:
        self._beat, self._pulse, self._every_s, self._name = beat, pulse, every_s, name
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        last_s = time.monotonic()
        fails = False
        while not self._closed.wait(self._every_s):
            if self._pulse.has_moved_since(last_s):
                last_s = time.monotonic()
                try:
                    self._beat()
                    fails = False
                except Exception as error:  # noqa: BLE001  a database that fails is tried again at the next beat
                    if not fails:
                        log.warning("%s: no heartbeat: %s", self._name, error.__cause__ or error)
                    fails = True
