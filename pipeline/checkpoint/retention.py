"""Which checkpoints of a configuration are kept, and which files of others they need."""

from collections.abc import Collection, Iterable, Sequence

from pipeline.checkpoint.manifest import Manifest

LAST = 2  # one to continue from, and one before it should that not verify


def kept(names: Sequence[str], *, best: str | None, pinned: Collection[str]) -> set[str]:
    """Of the names that count, in the order they were written: the last two, the best, and those that are pinned."""
    return {*names[-LAST:], *({best} if best is not None else ()), *pinned}


def referred(manifests: Iterable[Manifest]) -> dict[str, set[str]]:
    """The files of other checkpoints that these refer to: name -> files."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        for file, entry in manifest.files.items():
            if entry.at is not None:
                found.setdefault(entry.at, set()).add(file)
    return found
