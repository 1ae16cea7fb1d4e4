"""What a checkpoint keeps of each process of a trial, where several train together.

Models, optimizers and the rest are the same on all of them, and are saved as rank 0 has them. What each has of its own
is random state, the sums of its averages, and gradients that wait to be summed (`no_sync`): rank 0's stand where those
of a process that is alone stand, and `ranks` has the others', by number.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.random import capture_generators, capture_random, random_from

Means = Mapping[str, Sequence[float]]  # name -> sum and count


def fingerprint(gradients: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """Equal where the gradients are, and else most certainly not; found where they are."""
    found = {}
    for owner, named in gradients.items():
        for name, gradient in named.items():
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            values = torch.view_as_real(values) if values.is_complex() else values
            found[f"{owner}.{name}"] = _hashed(values)
    return found


def _hashed(values: Tensor) -> list[float]:
    """A hash, in which equal elements cancel each other, and the sum, in which others may."""
    if not values.numel():
        return []
    return [int(torch.hash_tensor(values).view(torch.int64)), float(values.sum(dtype=torch.float64))]


def own_part(
    objects: Mapping[str, object], loop: Mapping[str, Any], gradients: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What this process has of its own; `gradients` where they are."""
    return {
        "rng": capture_random(),
        "generators": capture_generators(objects),
        "epoch_start": loop["epoch_start"],
        "means": loop["means"],
        "grad": gradients,
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
        if others[rank]["grad"] is not None:
            seen["grad"] = others[rank]["grad"]
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
