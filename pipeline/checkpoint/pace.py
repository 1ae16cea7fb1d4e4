"""How often a checkpoint is taken inside an epoch."""

import time
from typing import Literal

from pipeline.checkpoint.snapshots import Taken

Every = float | Literal["auto"]

SHARE = 0.01  # of training time that "auto" spends on checkpoints
UNKNOWN_S = 60.0  # until the first has shown what one costs


class Pace:
    """Says when the next checkpoint is due.

    "auto" is the rule of CheckFreq (Mohan et al., FAST'21): the interval follows from what a checkpoint was measured
    to cost, so that all of them together cost at most a given share, and none begins before the last one is written.
    What it costs is the time that training waited, and the writing thread's processor time, which on a busy machine is
    taken from training too.
    """

    def __init__(self, every: Every) -> None:
        self._every = every
        self._last_s = time.monotonic()
        self._taken: Taken | None = None
        self._interval_s = UNKNOWN_S if every == "auto" else float(every)

    @property
    def interval_s(self) -> float:
        """Seconds from one checkpoint to the next."""
        if self._every == "auto" and self._taken is not None and self._taken.written is not None:
            cost, self._taken = self._taken, None
            assert cost.written is not None
            self._interval_s = max((cost.stall_s + cost.written.cpu_s) / SHARE, cost.written.wall_s)
        return self._interval_s

    def due(self) -> bool:
        """Whether it is time for the next one."""
        last = self._taken
        if self._every == "auto" and last is not None and last.written is None and not last.torn:
            return False
        return time.monotonic() - self._last_s >= self.interval_s

    def taken(self, taken: Taken) -> None:
        """One was taken just now."""
        self._last_s = time.monotonic()
        self._taken = taken
