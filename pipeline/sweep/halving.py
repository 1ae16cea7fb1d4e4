"""Asynchronous successive halving with promotion (Li et al., MLSys 2020, algorithm 2, on pausable trials).

A configuration pauses at every rung. The best 1/eta of a rung, among all that have reached it so far, go on to
the next; a paused one that falls outside today may be promoted later, when the rung has grown.

Hyperband (Li et al., JMLR 18(185), 2018, algorithm 1) hedges against learners that start slowly: several brackets of
the same, each of which compares for the first time one rung later and gets fewer configurations. What bracket a
configuration is in follows from its number alone.
"""

from collections.abc import Mapping
from functools import cache
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


def bracket_of(number: int, count: int, *, eta: int) -> int:
    """Which of `count` brackets a configuration is in; bracket s compares for the first time at rung s."""
    dealt = _dealt(count, eta)
    return dealt[number % len(dealt)]


@cache
def _dealt(count: int, eta: int) -> tuple[int, ...]:
    """The brackets of one whole Hyperband, so mixed that any first few are about in its proportions."""
    sizes = [-(-count * eta ** (count - 1 - s) // (count - s)) for s in range(count)]  # rounded up
    places = [((place + 0.5) / size, s) for s, size in enumerate(sizes) for place in range(size)]
    return tuple(s for _, s in sorted(places))


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
