"""What the trials of a study say about checkpoints, and what they are told."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from pipeline.checkpoint import Manifest, Position, parse_name
from pipeline.sweep.lineage import progress_of


def accepted_checkpoints(segments: tuple[FrozenTrial, ...], names: list[str]) -> list[str]:
    """Of the checkpoints in a store those that count: written by an accepted segment, up to what its trial says.

    Whatever else is there was written by a worker that had lost its trial, or was never committed.
    """
    newest: dict[int, Position] = {}
    for segment in segments:
        committed = progress_of(segment)["checkpoint"]
        if committed is not None and committed != segment.user_attrs["start"]:
            newest[segment.number] = position_of(committed)
        adopted = segment.user_attrs.get("adopted")  # what the segment before had no more time to tell the study
        if adopted is not None:
            newest[trial_of(adopted)] = position_of(adopted)
    return [name for name in names if (written := parse_name(name)) and _counts(written, newest)]


def _counts(written: tuple[Position, int], newest: Mapping[int, Position]) -> bool:
    position, trial = written
    return trial in newest and position <= newest[trial]


def position_of(name: str) -> Position:
    """Of a checkpoint, by its name."""
    parsed = parse_name(name)
    assert parsed is not None, name
    return parsed[0]


def trial_of(name: str) -> int:
    """The number of the trial that wrote a checkpoint, by its name."""
    parsed = parse_name(name)
    assert parsed is not None, name
    return parsed[1]


def progress_from(manifest: Manifest) -> dict[str, Any]:
    """What the study is told of a checkpoint."""
    best = manifest.best
    return {
        "checkpoint": manifest.name,
        "epochs": manifest.history[-1].epoch if manifest.history else 0,
        "best": best
        and {
            "epoch": best.epoch,
            "value": best.value,
            "checkpoint": best.checkpoint,
            "metrics": dict(manifest.history[best.epoch - 1].metrics),
        },
    }
