"""What a checkpoint keeps of each process of a trial, where several train together.

Models, optimizers and the rest are the same on all of them, and are saved as rank 0 has them. What each has of its own
is random state and the sums of its averages: rank 0's stand where those of a process that is alone stand, and `ranks`
has the others', by number.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.checkpoint.random import capture_generators, capture_random, random_from

Means = Mapping[str, Sequence[float]]  # name -> sum and count


def own_part(objects: Mapping[str, object], loop: Mapping[str, Any]) -> dict[str, Any]:
    """What this process has of its own."""
    return {
        "rng": capture_random(),
        "generators": capture_generators(objects),
        "epoch_start": loop["epoch_start"],
        "means": loop["means"],
    }


def as_seen_by(rank: int, world_size: int, state: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A checkpoint's state with what this process has of its own where that of a process that is alone stands.

    One that was not there when it was taken draws from `seed`. Where they were more or fewer, each has the sums that
    all of them had on average: so a batch counts the same, in however many parts it was trained.
    """
    loop, others = state["loop"], {int(number): part for number, part in state.get("ranks", {}).items()}
    sums = [loop["means"], *(others[number]["means"] for number in sorted(others))]
    means = sums[rank] if len(sums) == world_size else _scaled(merged(sums), 1 / len(sums))
    seen = {name: value for name, value in state.items() if name != "ranks"}
    start = loop["epoch_start"]
    if rank in others:
        seen |= {"rng": others[rank]["rng"], **others[rank]["generators"]}
        start = others[rank]["epoch_start"]
    elif rank > 0:
        seen["rng"] = random_from(seed)
        start = start and {**start, "rng": seen["rng"]}
    seen["loop"] = {**loop, "epoch_start": start, "means": means}
    return seen


def _scaled(sums: Means, factor: float) -> Means:
    return {name: [factor * total, factor * count] for name, (total, count) in sums.items()}


def merged(sums: Iterable[Means]) -> dict[str, list[float]]:
    """The sums of several processes together."""
    found: dict[str, list[float]] = {}
    for one in sums:
        for name, (total, count) in one.items():
            before = found.get(name, [0.0, 0.0])
            found[name] = [before[0] + total, before[1] + count]
    return found
