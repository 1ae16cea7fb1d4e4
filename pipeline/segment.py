"""What a run and the world around it say to each other."""

from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.checkpoint import Checkpoint, Manifest, Report


class Stopped(BaseException):
    """Leaves the user's loop after its checkpoint was taken. No `Exception`, so no loop catches it by chance.

    Attributes:
        ended: why, in the words of a segment's `ended`: preempted, paused, pruned.
    """

    def __init__(self, ended: str) -> None:
        super().__init__(ended)
        self.ended = ended


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a checkpoint is made of, taken at one position; it aliases nothing that trains on."""

    manifest: Manifest
    state: dict[str, Any]


class Segment(Protocol):
    """Where a run resumes from, where its checkpoints go, and when it has to stop."""

    @property
    def trial(self) -> int:
        """The number of this segment's trial; part of its checkpoints' names."""

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        """The checkpoint to continue from, verified; None at the start of training."""

    def commit(self, snapshot: Snapshot, report: Report | None) -> None:
        """Stores a checkpoint, now or soon; `report` is the epoch's that it completes, None inside an epoch."""

    def checkpoint(self, name: str) -> Checkpoint:
        """A checkpoint of this configuration, to be read."""

    def asked_to_stop(self) -> str | None:
        """Why training must stop at the next chance, or None. Also the sign that training moves."""

    def after_epoch(self, report: Report) -> str | None:
        """Why training stops after this epoch's report, or None to go on."""
