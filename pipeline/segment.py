"""What a run and the world around it say to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.checkpoint import Checkpoint, Manifest, Position, Report, Store, Taken, save
from pipeline.checkpoint.manifest import FROZEN


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
    """Everything a checkpoint is made of, taken at one position.

    Attributes:
        state: whole once `taken.wait()` has returned, and until `taken.release()`.
    """

    manifest: Manifest
    state: dict[str, Any]
    taken: Taken

    @property
    def report(self) -> Report | None:
        """The epoch's that it completes; None inside an epoch and where a stage is handed over."""
        position = self.manifest.position
        ends_epoch = position.batch == 0 and not position.is_stage_start
        return self.manifest.history[-1] if ends_epoch and self.manifest.history else None


def put(store: Store, snapshot: Snapshot, parent: Manifest | None) -> Manifest:
    """Commits a snapshot to a store; returns its manifest, completed. `parent` is what was committed before it."""
    manifest, state, frozen = snapshot.manifest, snapshot.state, snapshot.taken.frozen
    entry = parent.files.get(FROZEN) if parent is not None else None
    if parent is not None and entry is not None:
        there = store.files(entry.at or parent.name)
        parent = parent if there.get(FROZEN) == entry.size_bytes else None  # gone: it is stored anew
    return store.put(manifest.name, lambda folder: save(folder, state, manifest, frozen=frozen, parent=parent))


class Segment(Protocol):
    """Where a run resumes from, where its checkpoints go, and when it has to stop."""

    @property
    def trial(self) -> int:
        """The number of this segment's trial; part of its checkpoints' names."""

    def resume(self) -> tuple[Manifest, dict[str, Any]] | None:
        """The checkpoint to continue from, verified; None at the start of training."""

    def make_room(self, manifest: Manifest) -> bool:
        """Called before each snapshot, with what its manifest will be: returns when one can be taken.

        And whether that one must stand, because another with the best weights so far made room for it.
        """

    def commit(self, snapshot: Snapshot) -> None:
        """Stores a checkpoint, now or soon, and releases the snapshot."""

    def checkpoint(self, name: str) -> Checkpoint:
        """A checkpoint of this configuration, to be read."""

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        """Training has come to here, by a batch or an epoch: the sign that it moves.

        `means` are sum and count of the epoch's averages.
        """

    def asked_to_stop(self) -> str | None:
        """Why training must stop at the next chance, or None."""

    def after_epoch(self, report: Report) -> str | None:
        """Why training stops after this epoch's report, or None to go on."""
