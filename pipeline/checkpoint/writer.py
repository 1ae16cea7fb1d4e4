"""Writes behind training: a thread that commits what it is given, in order, while the next batches run."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Writer(Generic[T]):
    """At most one item is being written and one waits.

    `write` commits one item, and may put off a part that `finish` does before a flush returns. An error of theirs ends
    the thread; the next call of another method raises it, as itself.
    """

    def __init__(self, write: Callable[[T], None], finish: Callable[[], None] = lambda: None) -> None:
        self._write = write
        self._finish = finish
        self._changed = threading.Condition()
        self._waiting: T | None = None
        self._flushing = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
        self._thread.start()

    def make_room(self, may_drop: Callable[[T], bool]) -> T | None:
        """Returns when nothing waits. What waited was dropped, and is returned, if `may_drop` says so."""
        with self._changed:
            self._raise()
            waiting = self._waiting
            if waiting is not None and may_drop(waiting):
                self._waiting = None
                self._changed.notify_all()
                return waiting
            while self._waiting is not None:
                self._changed.wait()
                self._raise()
            return None

    def submit(self, item: T) -> None:
        """Hands over an item, which is not touched any more by the caller. There must be room."""
        with self._changed:
            self._raise()
            assert self._waiting is None
            self._waiting = item
            self._changed.notify_all()

    def is_awaited(self, timeout_s: float) -> bool:
        """For `write` itself, where it has time: whether another item comes to wait before that is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is not None, timeout_s)

    def flush(self) -> None:
        """Returns when everything is written."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            while self._error is None and self._flushing:
                self._changed.wait()
            self._raise()

    def close(self) -> None:
        """Writes what waits and ends the thread. Raises the error that has not been raised yet."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while self._waiting is None and not self._flushing and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    item, self._waiting = self._waiting, None
                    self._changed.notify_all()
                if item is not None:
                    self._write(item)
                    continue
                self._finish()
                with self._changed:
                    self._flushing = False
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  it is raised where the training is
            with self._changed:
                self._error = error
                self._waiting = None
                self._changed.notify_all()
