"""Where the killed run is killed: drawn from one seed, so that the same command kills at the same places."""

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.checkpoint import Position


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill.

    Attributes:
        at: it comes at this position, or at the next one that training reaches.
        signal: SIGKILL or SIGTERM.
        before: whether a SIGKILL comes before the checkpoint that is due there is written.
        checkpoint_at: where a checkpoint inside the epoch is written before the kill; None for nowhere.
    """

    at: Position
    signal: signal.Signals
    before: bool = False
    checkpoint_at: Position | None = None


# What a user's loop must survive, each by turns; one kill of each is five.
WAYS = (
    "SIGKILL after a checkpoint inside the epoch",  # resumes inside the epoch
    "SIGKILL at an epoch's end",  # resumes between epochs
    "SIGTERM inside an epoch",  # takes its checkpoint at the next batch and resumes there
    "SIGKILL without a checkpoint",  # falls back to an older one, or to the start
    "SIGTERM at an epoch's end",
)


def plan_kills(positions: Sequence[Position], kills: int, seed: int) -> list[Kill]:
    """At most so many kills, in the order of their positions.

    `positions` are those of the undisturbed run. None is killed at the last, where nothing is left to do.
    """
    chance = random.Random(seed)
    free = list(positions[:-1])
    found: list[Kill] = []
    for number in range(min(kills, len(free))):
        way = WAYS[number % len(WAYS)]
        wanted = [position for position in free if (position.batch > 0) == way.endswith(("epoch", "checkpoint"))]
        at = chance.choice(wanted or free)
        free.remove(at)
        found.append(_kill(way, at, positions, chance))
    return sorted(found, key=lambda kill: kill.at)


def describe(position: Position, *, stages: bool = False) -> str:
    """A position for people: `after 3 batches of epoch 1`, `at the end of epoch 0`; epochs count from 0."""
    of = f" of stage {position.stage}" if stages else ""
    if position.batch:
        batches = "1 batch" if position.batch == 1 else f"{position.batch} batches"
        return f"after {batches} of epoch {position.epoch}{of}"
    if position.epoch:
        return f"at the end of epoch {position.epoch - 1}{of}"
    return f"at the start{of}"


def _kill(way: str, at: Position, positions: Sequence[Position], chance: random.Random) -> Kill:
    if way.startswith("SIGTERM"):
        return Kill(at=at, signal=signal.SIGTERM)
    if way == WAYS[0] and at.batch:
        same = [p for p in positions if (p.stage, p.epoch) == (at.stage, at.epoch) and 0 < p.batch <= at.batch]
        return Kill(at=at, signal=signal.SIGKILL, checkpoint_at=chance.choice(same))
    return Kill(at=at, signal=signal.SIGKILL, before=way == WAYS[3])
