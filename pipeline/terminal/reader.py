"""Reading a study from time to time, for a view of it: never in the way of those who work on it, nor of the view."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("pipeline")
T = TypeVar("T")
READ_S = 2.0
SHARE = 0.05  # of the time, at most, is spent on reading
AWAY_S = 10.0


class Reader(Generic[T]):
    """Calls a function every two seconds, in a thread of its own, which may wait for a database that is away.

    Attributes:
        found: what it has returned last; None before.
    """

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self.found: T | None = None
        self._found_s = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="study reader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """It is not read any more."""
        self._closed.set()

    @property
    def away_s(self) -> float | None:
        """For how long it could not be read, if that is remarkable."""
        away_s = time.monotonic() - self._found_s
        return away_s if away_s > AWAY_S else None

    def _run(self) -> None:
        while not self._closed.is_set():
            began_s = time.monotonic()
            try:
                self.found = self._read()
                self._found_s = time.monotonic()
            except Exception as error:  # noqa: BLE001  stores raise what they like; it is read again
                log.debug("the study cannot be read: %s", error)
            took_s = time.monotonic() - began_s
            self._closed.wait(max(READ_S, took_s / SHARE))
