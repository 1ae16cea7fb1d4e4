"""What was measured for one size, as medians, and what it was meant to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.memory import Peaks
from benchmarks.method import Times
from benchmarks.ours import AT_ONCE, OVERLAPPED
from benchmarks.peers import LOGGED

SMALL, LARGE = 10_000, 63_000_000  # the sizes that goals name
READ = "read + digest"
RESUME = "thaw"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians of one size, in seconds.

    Attributes:
        size: parameters that were asked for; `parameters` are those there were.
        device: where they were trained.
        memcpy_s: of as many bytes, from memory to memory or from a CUDA device to pinned memory.
        times: of each method, by name.
        unsynced: the methods whose files may not survive a power cut.
        calls_s: what no snapshot in Python is without: state_dicts, random states, a copy of each tensor.
        pass_s: forward and backward, alone and beside a copy.
        restore: of each way to restore, by name.
    """

    size: int
    device: str
    parameters: int
    state_bytes: int
    rounds: int
    memcpy_s: float
    calls_s: float
    write_s: float
    digest_s: float
    pass_s: float
    pass_beside_s: float
    times: Mapping[str, Times]
    unsynced: frozenset[str]
    restore: Mapping[str, float]
    peaks: Peaks | None = None

    @property
    def peers(self) -> dict[str, Times]:
        return {name: times for name, times in self.times.items() if name not in (AT_ONCE, OVERLAPPED)}

    def rows(self) -> list[dict[str, str | int | float]]:
        """For a file."""
        return [
            {
                "method": name,
                "parameters": self.parameters,
                "device": self.device,
                "stall_s": times.stall_s,
                "total_s": times.total_s,
                "memcpy_s": self.memcpy_s,
            }
            for name, times in self.times.items()
        ]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Attributes:
    is_reached: None if it was not measured.
    """

    text: str
    measured: str
    is_reached: bool | None


def goals(results: Sequence[Result]) -> list[Goal]:
    """Every goal, in the same order."""
    of_size = {result.size: result for result in results}
    return [
        *_large(of_size.get(LARGE)),
        _below_all(results, OVERLAPPED, "the stall of an overlapped copy"),
        _below_all(results, AT_ONCE, "the stall of a copy at once"),
        _small(of_size.get(SMALL)),
    ]


def _large(result: Result | None) -> list[Goal]:
    texts = (
        "63M: the stall of a copy at once is at most 1.25 x memcpy",
        "63M: the stall of an overlapped copy is at most 0.25 x memcpy",
        "63M: the stall is at least 8 x below torch.save + log_artifact",
        "63M: the total is at most 1.3 x write + fsync",
        "63M: a restore is at most 1.3 x read + digest",
        "63M: the peak of memory is at most training's and two snapshots",
    )
    if result is None:
        return [Goal(text=text, measured="not measured", is_reached=None) for text in texts]
    at_once, overlapped = result.times[AT_ONCE], result.times[OVERLAPPED]
    below = result.times[LOGGED].stall_s / at_once.stall_s
    ratios: tuple[tuple[float | None, float], ...] = (
        (at_once.stall_s / result.memcpy_s, 1.25),
        (overlapped.stall_s / result.memcpy_s, 0.25),
        (below, 8.0),
        (at_once.total_s / result.write_s, 1.3),
        (result.restore[RESUME] / result.restore[READ], 1.3),
        (result.peaks.snapshots if result.peaks is not None else None, 2.0),
    )
    return [
        _goal(text, value, is_reached=value is not None and (value >= limit if value is below else value <= limit))
        for text, (value, limit) in zip(texts, ratios, strict=True)
    ]


def _goal(text: str, value: float | None, *, is_reached: bool) -> Goal:
    if value is None:
        return Goal(text=text, measured="not measured", is_reached=None)
    return Goal(text=text, measured=f"{value:.2f}", is_reached=is_reached)


def _below_all(results: Sequence[Result], method: str, words: str) -> Goal:
    """One of our two ways against the fastest peer."""
    margins = {
        result.size: min(times.stall_s for times in result.peers.values()) / result.times[method].stall_s
        for result in results
    }
    return Goal(
        text=f"every size: {words} is below that of every peer",
        measured=", ".join(f"{size:,}: {margin:.2f} x below" for size, margin in margins.items()),
        is_reached=all(margin > 1 for margin in margins.values()),
    )


def _small(result: Result | None) -> Goal:
    stall_s = None if result is None else result.times[AT_ONCE].stall_s
    return Goal(
        text="10k: the stall is at most 1 ms",
        measured="not measured" if stall_s is None else f"{stall_s * 1e3:.2f} ms",
        is_reached=None if stall_s is None else stall_s <= 1e-3,
    )
