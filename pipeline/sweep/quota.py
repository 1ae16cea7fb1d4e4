"""A quota over the checkpoints of a whole study.

What is deleted first is needed least: the rungs that lie behind, then the best weights of lesser configurations, then
the second checkpoint that would serve if the newest did not verify, then what a complete configuration could be
extended from. Never deleted are the newest checkpoint of a configuration that can still go on, and the study's best.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checkpoint import MlflowStore, Store
from pipeline.checkpoint.manifest import sort_names
from pipeline.checkpoint.retention import referred
from pipeline.checkpoint.store import load_manifest
from pipeline.errors import CorruptCheckpoint
from pipeline.sweep.lineage import COMPLETE, Lineage, ranked
from pipeline.sweep.study import Study

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What one configuration holds that nobody writes to just now."""

    lineage: Lineage
    store: Store
    sizes: Mapping[str, int]


def shrink(study: Study, keep_bytes: int) -> None:
    """Deletes checkpoints of a study until all of them take at most `keep_bytes`, or nothing more may go.

    Any number of processes may do so at once, and die in it.
    """
    lineages = study.lineages()
    held = [_Held(lineage=one, store=store, sizes=store.sizes()) for one, store in _stores(lineages)]
    excess = sum(sum(one.sizes.values()) for one in held) - keep_bytes
    if excess <= 0:
        return
    places = {lineage.number: place for place, lineage in enumerate(ranked(lineages, study.spec.direction))}
    doomed: dict[int, set[str]] = {}
    # Whoever trains just now looks after its own.
    candidates = [(_order(one, name, places), name, one) for one in held if one.lineage.ended for name in one.sizes]
    for _, name, owner in sorted(candidates, key=lambda candidate: candidate[:2]):
        if excess > 0 and not _is_needed(owner.lineage, name, places):
            doomed.setdefault(owner.lineage.number, set()).add(name)
            excess -= owner.sizes[name]
    for one in held:
        if one.lineage.number in doomed:
            _delete(one, doomed[one.lineage.number])
    if excess > 0:
        log.warning("the checkpoints that are needed take %.2f GB more than --keep-gb allows", excess / 1e9)


def stored_bytes(study: Study) -> dict[int, int]:
    """What the checkpoints of each configuration take."""
    return {lineage.number: sum(store.sizes().values()) for lineage, store in _stores(study.lineages())}


def _stores(lineages: Mapping[int, Lineage]) -> list[tuple[Lineage, Store]]:
    return [(one, MlflowStore(one.run_id)) for one in lineages.values() if one.run_id is not None]


def _is_needed(lineage: Lineage, name: str, places: Mapping[int, int]) -> bool:
    is_newest = name == lineage.progress["checkpoint"]
    if is_newest and lineage.ended != COMPLETE:
        return True
    return places.get(lineage.number) == 0 and name == (lineage.best or {}).get("checkpoint")


def _order(one: _Held, name: str, places: Mapping[int, int]) -> tuple[int, int]:
    """The least is deleted first; of a kind, those of the worst configurations."""
    newest, best = one.lineage.progress["checkpoint"], (one.lineage.best or {}).get("checkpoint")
    names = sort_names(list(one.sizes))
    if name == newest:
        kind = 3
    elif newest in names and names.index(name) == names.index(newest) - 1:
        kind = 2
    else:
        kind = 1 if name == best else 0
    return kind, -places.get(one.lineage.number, len(places))


def _delete(one: _Held, names: set[str]) -> None:
    keep = set(one.sizes) - names
    manifests = []
    for name in keep:
        try:
            manifests.append(load_manifest(one.store.get(name), name))
        except CorruptCheckpoint:
            continue  # what a damaged one refers to is of no use either
    one.store.keep_only(keep, one.lineage.head.number, referred(manifests))
