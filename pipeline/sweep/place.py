"""Where a worker's training stands, in shared memory: for its supervisor to show, at any time and at no cost."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from statistics import median
from typing import Any

RECENT = 5  # epochs, by which the next ones are judged
STARTING, SEEKING = -2.0, -1.0  # instead of a configuration's number
CONFIGURATION, UNTIL, EPOCHS, BATCH, BATCHES, LOSS, EPOCH_S, BEGAN_S = range(8)
NAME_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where training stands.

    Attributes:
        configuration: its number.
        until: the epoch up to which it trains, through all stages, as `epochs` counts them.
        epochs: finished epochs.
        batch: finished batches of the current epoch.
        batches: all that this worker has trained, of whatever configuration.
        loss_name, loss: the epoch's first average that is called a loss, else its first; before there is one: "", None.
        epoch_s: seconds that an epoch takes; None while none is known.
        elapsed_s: seconds since the current epoch began.
    """

    configuration: int
    until: int
    epochs: int
    batch: int
    batches: int
    loss_name: str
    loss: float | None
    epoch_s: float | None
    elapsed_s: float


class SharedPlace:
    """A place that one process writes and another reads; what is read while it is written may be half of each."""

    def __init__(self, context: BaseContext) -> None:
        self._shared: Any = context.RawArray("d", [STARTING, 0.0, 0.0, 0.0, 0.0, math.nan, math.nan, 0.0])
        self._name: Any = context.RawArray("c", NAME_BYTES)
        self._loss: str | None = None
        self._epochs_s: deque[float] = deque(maxlen=RECENT)
        self._is_whole = True

    def begin(self, configuration: int, *, until: int, epochs: int, inside: bool) -> None:
        """A segment starts, `inside` an epoch or at its beginning."""
        self._epochs_s.clear()
        self._is_whole = not inside
        self._shared[UNTIL], self._shared[EPOCHS], self._shared[BATCH] = until, epochs, 0.0
        self._shared[LOSS], self._shared[EPOCH_S], self._shared[BEGAN_S] = math.nan, math.nan, time.monotonic()
        self._shared[CONFIGURATION] = configuration

    def moved(self, batch: int, means: Mapping[str, Sequence[float]]) -> None:
        """A batch is finished or, with `batch` 0, an epoch; `means` has sum and count of its averages so far."""
        shared = self._shared
        mean = means.get(self._loss) if self._loss is not None else self._choose(means)
        if mean is not None:
            shared[LOSS] = mean[0] / mean[1]
        shared[BATCH] = batch
        if batch:
            shared[BATCHES] += 1
        else:
            self._end_epoch()

    def _choose(self, means: Mapping[str, Sequence[float]]) -> Sequence[float] | None:
        self._loss = next((name for name in means if "loss" in name), next(iter(means), None))
        if self._loss is None:
            return None
        self._name.value = self._loss.encode()[: NAME_BYTES - 1]
        return means[self._loss]

    def _end_epoch(self) -> None:
        now_s = time.monotonic()
        if self._is_whole:
            self._epochs_s.append(now_s - self._shared[BEGAN_S])
            self._shared[EPOCH_S] = median(self._epochs_s)
        self._is_whole = True
        self._shared[BEGAN_S] = now_s
        self._shared[EPOCHS] += 1

    def end(self) -> None:
        """The segment has ended."""
        self._shared[CONFIGURATION] = SEEKING

    @property
    def has_begun(self) -> bool:
        """Whether it has trained a segment already, or does."""
        return bool(self._shared[CONFIGURATION] != STARTING)

    def read(self) -> Place | None:
        """None while nothing is trained."""
        configuration, until, epochs, batch, batches, loss, epoch_s, began_s = self._shared
        if configuration < 0:
            return None
        return Place(
            configuration=int(configuration),
            until=int(until),
            epochs=int(epochs),
            batch=int(batch),
            batches=int(batches),
            loss_name=self._name.value.decode(errors="replace"),
            loss=None if math.isnan(loss) else loss,
            epoch_s=None if math.isnan(epoch_s) else epoch_s,
            elapsed_s=time.monotonic() - began_s,
        )
