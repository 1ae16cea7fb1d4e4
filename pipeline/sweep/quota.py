"""A quota over the checkpoints of a whole study.

What is deleted first is needed least: the rungs that lie behind, then the best weights of lesser configurations, then
the second checkpoint that would serve if the newest did not verify, then what a complete configuration could be
extended from. Never deleted are the newest checkpoint of a configuration that can still go on, and the study's best.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.checkpoint import MlflowStore, Store, parse_name
from pipeline.checkpoint.retention import referred
from pipeline.checkpoint.store import load_manifest
from pipeline.errors import CorruptCheckpoint
from pipeline.sweep.accepted import accepted_checkpoints
from pipeline.sweep.lineage import COMPLETE, Lineage, ranked
from pipeline.sweep.objectives import pareto_front
from pipeline.sweep.study import Study

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What one configuration holds.

    Attributes:
        names: its checkpoints that count, in order; a resume starts from the last.
        sizes: of all that is there, by name.
    """

    lineage: Lineage
    store: Store
    names: Sequence[str]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, lineage: Lineage, store: Store) -> "_Held":
        names = accepted_checkpoints(lineage.segments, store.names())
        return cls(lineage=lineage, store=store, names=names, sizes=store.sizes())


def shrink(study: Study, keep_bytes: int) -> None:
    """Deletes checkpoints of a study until all of them take at most `keep_bytes`, or nothing more may go.

    Any number of processes may do so at once, and die in it.
    """
    lineages = study.lineages()
    held = [_Held.of(lineage, store) for lineage, store in _stores(lineages)]
    excess = sum(sum(one.sizes.values()) for one in held) - keep_bytes
    if excess <= 0:
        return
    ranking = ranked(lineages, study.spec.direction)
    places = {lineage.number: place for place, lineage in enumerate(ranking, start=1)}
    places |= {lineage.number: 0 for lineage in pareto_front(ranking, study.spec.objectives)}
    # Whoever trains just now looks after its own.
    candidates = [(_order(one, name, places), name, one) for one in held if one.lineage.ended for name in one.sizes]
    for _, name, owner in sorted(candidates, key=lambda candidate: candidate[:2]):
        if excess > 0 and not _is_needed(owner, name, places):
            before = sum(owner.store.sizes().values())
            _delete(owner, name)
            excess -= before - sum(owner.store.sizes().values())  # files that others refer to stay
    if excess > 0:
        log.warning(
            "the checkpoints that are needed take %.2f GB more than --keep-gb allows; give it more", excess / 1e9
        )


def stored_bytes(study: Study) -> dict[int, int]:
    """What the checkpoints of each configuration take."""
    return {lineage.number: sum(store.sizes().values()) for lineage, store in _stores(study.lineages())}


def expected_bytes(study: Study) -> tuple[int, int]:
    """The largest checkpoint, and what those to come may take: what the largest configuration does for each, less
    what is there. None yet: 0.
    """
    sizes = [store.sizes().values() for _, store in _stores(study.lineages())]
    largest = max((max(one, default=0) for one in sizes), default=0)
    totals = [sum(one) for one in sizes]
    return largest, max(totals, default=0) * study.spec.configurations - sum(totals)


def _stores(lineages: Mapping[int, Lineage]) -> list[tuple[Lineage, Store]]:
    return [(one, MlflowStore(one.run_id)) for one in lineages.values() if one.run_id is not None]


def _is_needed(one: _Held, name: str, places: Mapping[int, int]) -> bool:
    """Whether a resume starts from it, a stage reads what the one before ended with, or it is the best of all."""
    parsed = parse_name(name)
    is_start = bool(one.names) and name == one.names[-1]
    if one.lineage.ended != COMPLETE and (is_start or (parsed is not None and parsed[0].is_stage_start)):
        return True
    return places.get(one.lineage.number) == 0 and name == (one.lineage.best or {}).get("checkpoint")


def _order(one: _Held, name: str, places: Mapping[int, int]) -> tuple[int, int]:
    """The least is deleted first; of a kind, those of the worst configurations."""
    if name in one.names[-1:]:
        kind = 3
    elif name in one.names[-2:-1]:
        kind = 2
    else:
        kind = 1 if name == (one.lineage.best or {}).get("checkpoint") else 0
    return kind, -places.get(one.lineage.number, len(places))


def _delete(one: _Held, name: str) -> None:
    keep = set(one.store.names()) - {name}
    manifests = []
    for other in keep:
        try:
            manifests.append(load_manifest(one.store, other))
        except CorruptCheckpoint:
            continue  # what a damaged one refers to is of no use either
    one.store.keep_only(keep, one.lineage.head.number, referred(manifests))
