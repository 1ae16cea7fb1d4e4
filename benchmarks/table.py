"""Results as text, lined up for reading."""

from collections.abc import Sequence

from benchmarks.ours import AT_ONCE
from benchmarks.result import READ, Goal, Result


def table(result: Result) -> str:
    """The table of one size, with what it was compared with."""
    memcpy_s, calls_s, write_s = result.memcpy_s, result.calls_s, result.write_s
    lines = [
        (
            f"{result.parameters:,} parameters with AdamW, {result.device}, state of {_bytes(result.state_bytes)}; "
            f"medians of {result.rounds} rounds, in ms"
        ),
        "",
        _row("", "stall", "/ memcpy", "/ thaw", "total", "/ write"),
    ]
    thaw_s = result.times[AT_ONCE].stall_s
    for name, times in result.times.items():
        lines.append(
            _row(
                name + (" *" if name in result.unsynced else ""),
                _ms(times.stall_s),
                f"{times.stall_s / memcpy_s:.2f}",
                f"{times.stall_s / thaw_s:.2f}",
                _ms(times.total_s),
                f"{times.total_s / write_s:.2f}",
            )
        )
    lines += [
        _row(
            "memcpy" if result.device == "cpu" else "device to pinned memory",
            _ms(memcpy_s),
            "1.00",
            f"{memcpy_s / thaw_s:.2f}",
        ),
        _row("calls and copies alone", _ms(calls_s), f"{calls_s / memcpy_s:.2f}", f"{calls_s / thaw_s:.2f}"),
        _row("write + fsync", total=_ms(write_s), write="1.00"),
        _row("BLAKE3 alone", total=_ms(result.digest_s), write=f"{result.digest_s / write_s:.2f}"),
        "",
        "* without fsync. The total of thaw-overlapped includes the next pass and step, which it waits for.",
        f"A forward and backward pass takes {_ms(result.pass_s)}, beside a copy {_ms(result.pass_beside_s)}.",
        "",
        _row("restore", total="total", write="/ read"),
    ]
    for name, restore_s in result.restore.items():
        lines.append(_row(name, total=_ms(restore_s), write=f"{restore_s / result.restore[READ]:.2f}"))
    if result.peaks is not None:
        peaks = result.peaks
        lines += [
            "",
            (
                f"peak memory: training {_bytes(peaks.training)}, with snapshots {_bytes(peaks.with_snapshots)}, "
                f"{peaks.snapshots:.2f} snapshots more"
            ),
        ]
    return "\n".join(lines)


def verdicts(goals: Sequence[Goal]) -> str:
    """A line for each goal."""
    words = {True: "reached", False: "NOT REACHED", None: "-"}
    return "\n".join(f"{words[goal.is_reached]:<12} {goal.text}: {goal.measured}" for goal in goals)


def _row(name: str, stall: str = "", memcpy: str = "", thaw: str = "", total: str = "", write: str = "") -> str:
    return f"{name:<28}{stall:>10}{memcpy:>10}{thaw:>9}{total:>10}{write:>9}".rstrip()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.{3 if seconds < 1e-3 else 2 if seconds < 0.1 else 0}f}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.{2 if size < 1e7 else 0}f} MB"
