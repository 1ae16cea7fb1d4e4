"""Where two trainings part: from their records the first moment, from their last checkpoints how far."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint import FolderStore, Manifest, Position, encode, load
from pipeline.errors import ThawError
from pipeline.proving.record import KINDS, Moment, bits, entries

ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry that differs.

    Attributes:
        kind: tensor, state or metric.
        name: its name in the checkpoint, `model.weight`, or the metric's.
        how: the two values, or by how much they differ; empty where only their digests are known.
        others: how many more of its kind differ there.
        at: where it differs first; None in the last checkpoint.
    """

    kind: str
    name: str
    how: str
    others: int = 0
    at: Position | None = None


def first_differences(undisturbed: Mapping[Position, Moment], moments: Iterable[Moment]) -> list[Difference]:
    """Of each kind the first entry that differs, in the order of time; `moments` may have a position again."""
    found: dict[str, Difference] = {}
    for moment in moments:
        same = undisturbed.get(moment.at)
        if same is None:
            found.setdefault(
                "state",
                Difference(kind="state", name="position", how="the undisturbed run was never there", at=moment.at),
            )
        elif same.texts != moment.texts or same.names != moment.names:
            for difference in _differences(same.entries, moment.entries, moment.at):
                found.setdefault(difference.kind, difference)
        if len(found) == len(KINDS):
            break
    return list(found.values())


def last_checkpoint(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """Raises ThawError if there is none: training took none."""
    store = FolderStore(folder)
    names = store.names()
    if not names:
        raise ThawError(f"{folder}: training ended without a checkpoint")
    return load(store, names[-1])


def final_differences(
    left: tuple[Manifest, dict[str, Any]], right: tuple[Manifest, dict[str, Any]]
) -> list[Difference]:
    """Bit by bit, of each kind the first: tensors, state entries, and every metric of every epoch."""
    found = _differences(_everything(*left), _everything(*right), None)
    tensors = [encode(state)[1] for _, state in (left, right)]
    result = []
    for one in found:
        if one.kind == "tensor" and all(one.name in side for side in tensors):
            by = _distance(tensors[0][one.name], tensors[1][one.name])
            one = replace(one, how=by)
        result.append(one)
    return result


def count(checkpoint: tuple[Manifest, dict[str, Any]]) -> dict[str, int]:
    """How many entries of each kind are compared."""
    names = _everything(*checkpoint)
    return {kind: sum(name.startswith(f"{kind} ") for name in names) for kind in KINDS}


def _everything(manifest: Manifest, state: Mapping[str, Any]) -> dict[str, str]:
    metrics = {
        f"{name} of epoch {report.epoch - 1}": value
        for report in manifest.history
        for name, value in report.metrics.items()
    }
    best = manifest.best
    found = entries(state, metrics) | {"state position": str(manifest.position), "state step": str(manifest.step)}
    return found | {"state best": "none" if best is None else f"epoch {best.epoch - 1}: {best.value!r}"}


def _differences(left: Mapping[str, str], right: Mapping[str, str], at: Position | None) -> list[Difference]:
    result = []
    for kind in KINDS:
        names = [name for name in {**left, **right} if name.startswith(f"{kind} ")]
        parted = [name for name in names if left.get(name) != right.get(name)]
        if parted:
            first = parted[0]
            values = left.get(first, ABSENT), right.get(first, ABSENT)
            known = kind != "tensor" and not any(value.startswith("blake3 ") for value in values)
            how = f"{values[0]} undisturbed, {values[1]} killed" if known else ""
            name = first.removeprefix(f"{kind} ")
            result.append(Difference(kind=kind, name=name, how=how, others=len(parted) - 1, at=at))
    return result


def _distance(left: Tensor, right: Tensor) -> str:
    if left.shape != right.shape or left.dtype != right.dtype:
        return f"{left.dtype} {tuple(left.shape)} and {right.dtype} {tuple(right.shape)}"
    parted = (bits(left).reshape(left.numel(), -1) != bits(right).reshape(left.numel(), -1)).any(dim=1)
    text = f"{int(parted.sum())} of {left.numel()} values"
    if left.is_floating_point():
        text += f", by up to {(left.to(torch.float64) - right.to(torch.float64)).abs().max().item():.3g}"
    return text
