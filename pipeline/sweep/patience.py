"""Patience with stores and servers that fail for a while."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pipeline.checkpoint import Torn
from pipeline.errors import CheckpointError, CorruptCheckpoint, EncodeError, MismatchError, ThawError
from pipeline.sweep.storage import is_away
from pipeline.sweep.study import Fenced, Study

log = logging.getLogger("pipeline")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0  # between two tries

T = TypeVar("T")


class Unsaved(ThawError):
    """What training has come to could not be kept where it belongs: no fault of the configuration's."""


class Patience:
    """With one store: from its first failure on, until it works again or `outage_s` seconds have passed."""

    def __init__(self, outage_s: float) -> None:
        self._outage_s = outage_s
        self._since_s: float | None = None
        self.pause_s = FIRST_PAUSE_S

    def worked(self) -> None:
        self._since_s, self.pause_s = None, FIRST_PAUSE_S

    def failed(self, what: str, error: Exception) -> None:
        """Returns if it is to be tried again, after `pause_s`. Raises Unsaved when it has been for long enough."""
        reason = _reason(error)
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = now_s
            log.warning("%s: %s; next tries for %.0f s", what, reason, self._outage_s)
        else:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        left_s = self._since_s + self._outage_s - now_s
        if left_s <= 0:
            raise Unsaved(
                f"{what}, for {self._outage_s:g} s by now: {reason}; everything saved before stays good: make room, or "
                "the store reachable and writable, and run the same command again"
            ) from error
        self.pause_s = min(self.pause_s, left_s)


def _reason(error: BaseException) -> str:
    """On one line. Of a database that is away its driver says it best: what comes above adds the statement."""
    while isinstance(error, Exception) and is_away(error) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def is_lasting(error: Exception) -> bool:
    """Whether trying again is of no use: it lies in what is saved, not in the store."""
    own = isinstance(error, ThawError) and not isinstance(error, CheckpointError)
    return own or isinstance(error, Fenced | EncodeError | CorruptCheckpoint | MismatchError | Torn)


def patiently(what: str, call: Callable[[], T], outage_s: float) -> T:
    """What `call`, which may be repeated, returns, once a store that fails works again.

    Raises Unsaved after `outage_s` seconds; at once what would not be better the next time.
    """
    patience = Patience(outage_s)
    while True:
        try:
            return call()
        except Exception as error:  # stores and servers raise what they like
            if is_lasting(error):
                raise
            patience.failed(what, error)
        time.sleep(patience.pause_s)


def patient(study: Study, outage_s: float) -> Study:
    """The same study, each call of which waits for a database that is away.

    Raises Unsaved when that takes longer than `outage_s` seconds.
    """
    patience = Patience(outage_s)

    def attempt(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        while True:
            try:
                answer = call(*arguments, **named)
            except Exception as error:  # the database's driver raises what it likes
                if not is_away(error):
                    raise
                waiting.was_away()
                patience.failed("the study database cannot be reached", error)
                time.sleep(patience.pause_s)
            else:
                patience.worked()
                return answer

    waiting = study.through(lambda storage: _Through(storage, attempt))
    return waiting


class _Through:
    """A storage each call of which is made by another function."""

    def __init__(self, storage: Any, call: Callable[..., Any]) -> None:
        self._storage, self._call = storage, call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return partial(self._call, found) if callable(found) else found
