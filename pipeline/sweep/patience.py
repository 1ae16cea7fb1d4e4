"""Patience with stores and servers that fail for a while."""

import logging
import time
from collections.abc import Callable

from pipeline.checkpoint import Torn
from pipeline.errors import EncodeError, ThawError
from pipeline.sweep.study import Fenced

log = logging.getLogger("pipeline")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0  # between two tries


class Unsaved(ThawError):
    """What training has come to could not be kept: no fault of the configuration's."""


def patiently(what: str, save: Callable[[], None], outage_s: float) -> None:
    """Calls `save`, which may be repeated, again and again while a store fails, for `outage_s` seconds.

    Raises Unsaved after that; Fenced and what lies in the state itself at once.
    """
    began_s, pause_s = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            save()
            return
        except (Fenced, EncodeError, Torn):
            raise
        except Exception as error:  # stores and servers raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            left_s = began_s + outage_s - time.monotonic()
            if left_s <= 0:
                raise Unsaved(
                    f"{what} cannot be saved, for {outage_s:g} s by now: {reason}; everything saved before stays good: "
                    "make room, or the store reachable and writable, and run the same command again"
                ) from error
            if pause_s == FIRST_PAUSE_S:
                log.warning("%s cannot be saved: %s; training goes on, next tries for %.0f s", what, reason, left_s)
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
