"""Which checkpoints of a configuration are kept."""

from collections.abc import Collection, Sequence

LAST = 2  # one to continue from, and one before it should that not verify


def kept(names: Sequence[str], *, best: str | None, pinned: Collection[str]) -> set[str]:
    """Of the names that count, in the order they were written: the last two, the best, and those that are pinned."""
    return {*names[-LAST:], *({best} if best is not None else ()), *pinned}
