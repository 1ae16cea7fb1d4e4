"""Asynchronous successive halving with promotion (Li et al., MLSys 2020, algorithm 2, on pausable trials).

A configuration pauses at every rung. The best 1/eta of a rung, among all that have reached it so far, go on to
the next; a paused one that falls outside today may be promoted later, when the rung has grown.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from pipeline.sweep.lineage import COMPLETE, PAUSED, Lineage

Direction = Literal["minimize", "maximize"]


def rungs(*, min_epochs: int, max_epochs: int, eta: int) -> list[int]:
    """The epochs at which configurations pause; the last is the full budget."""
    found = []
    rung = min_epochs
    while rung < max_epochs:
        found.append(rung)
        rung *= eta
    return [*found, max_epochs]


def promotion(
    lineages: Mapping[int, Lineage], rungs: list[int], *, eta: int, direction: Direction
) -> tuple[int, int] | None:
    """Which paused configuration goes on, and until which epoch; highest rung first. None if none may."""
    for rung, following in reversed(list(pairwise(rungs))):
        ranked = _ranked(lineages, rung, direction)
        for number in ranked[: len(ranked) // eta]:
            if _pauses_at(lineages[number], rung):
                return number, following
    return None


def last_promotion(
    lineages: Mapping[int, Lineage], rungs: list[int], *, direction: Direction
) -> tuple[int, int] | None:
    """The best of the highest rung, for a study that would otherwise end with nothing trained to the full.

    When rungs have become too small for 1/eta of them to be a whole configuration, the best one goes on all
    the same, up to `max_epochs`.
    """
    if any(lineage.rung_value(rungs[-1]) is not None or _is_complete(lineage) for lineage in lineages.values()):
        return None
    for rung, following in reversed(list(pairwise(rungs))):
        paused = [n for n in _ranked(lineages, rung, direction) if _pauses_at(lineages[n], rung)]
        if paused:
            return paused[0], following
    return None


def _ranked(lineages: Mapping[int, Lineage], rung: int, direction: Direction) -> list[int]:
    """The configurations that have reached a rung, best first; ties go to the lower number."""
    values = {n: v for n, lineage in lineages.items() if (v := lineage.rung_value(rung)) is not None}
    sign = 1.0 if direction == "minimize" else -1.0
    return sorted(values, key=lambda n: (not lineages[n].is_feasible, sign * values[n], n))


def _is_complete(lineage: Lineage) -> bool:
    """Whether the search has brought it to its end, if only by the experiment's patience."""
    return lineage.ended == COMPLETE and not lineage.reopened


def _pauses_at(lineage: Lineage, rung: int) -> bool:
    return lineage.ended == PAUSED and lineage.epochs == rung
