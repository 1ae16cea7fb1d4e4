"""What a report is made of: a study as it stands at one moment, read once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.finish import front, ranking, state_of
from pipeline.sweep.lineage import DIVERGED, PAUSED, REASONS, Lineage
from pipeline.sweep.schedule import is_over, is_search_over
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site, run_name

STATES = ("running", "waiting", "paused", "interrupted", "complete", "pruned", "failed")
BREAKS = tuple(why for why in REASONS[TrialState.FAIL] if why != DIVERGED)  # what can be resumed


@dataclass(frozen=True, kw_only=True)
class Found:
    """A study at one moment.

    Attributes:
        states: how each configuration stands, as its MLflow run's tag says.
        ranking: the configurations with a result, best first.
        front: those that no other one beats.
        over, search_over: whether nothing is left to do; whether the search is done.
        at: when it was read.
    """

    name: str
    url: str
    spec: StudySpec
    site: Site
    lineages: Mapping[int, Lineage]
    states: Mapping[int, str]
    ranking: tuple[Lineage, ...]
    front: tuple[Lineage, ...]
    over: bool
    search_over: bool
    at: datetime

    @classmethod
    def of(cls, study: Study) -> "Found":
        """Raises ThawError if the study was not finished being created."""
        lineages, over = study.lineages(), is_search_over(study)
        return cls(
            name=study.name,
            url=study.url,
            spec=study.spec,
            site=Site.of(study),
            lineages=lineages,
            states={number: state_of(one, over=over) for number, one in lineages.items()},
            ranking=tuple(ranking(study)),
            front=tuple(front(study)),
            over=is_over(study),
            search_over=over,
            at=datetime.now(),  # noqa: DTZ005  as Optuna's own times
        )

    @cached_property
    def counts(self) -> Counter[str]:
        """How many configurations stand how."""
        return Counter(self.states.values())

    @cached_property
    def failures(self) -> Counter[str]:
        """Of those that failed, why."""
        return Counter(str(one.ended) for number, one in self.lineages.items() if self.states[number] == "failed")

    @property
    def left(self) -> int:
        """Configurations that are still to be drawn."""
        return max(0, self.spec.configurations - len(self.lineages))

    @cached_property
    def epochs(self) -> int:
        """Epochs trained and committed by all of them."""
        return sum(one.epochs for one in self.lineages.values())

    @cached_property
    def saved(self) -> int:
        """Epochs that those which are paused or pruned have not been trained for."""
        idle = [one for number, one in self.lineages.items() if self.states[number] in ("paused", "pruned")]
        return sum(max(0, self.budget(one) - one.epochs) for one in idle)

    def budget(self, lineage: Lineage) -> int:
        """The epochs that a configuration gets at most."""
        return lineage.extended or self.spec.max_epochs

    @cached_property
    def breaks(self) -> Counter[str]:
        """How often segments were broken off, by why."""
        return Counter(why for one in self.lineages.values() for why in one.endings if why in BREAKS)

    @cached_property
    def resumptions(self) -> list[FrozenTrial]:
        """The segments that have taken over what was broken off."""
        found = []
        for one in self.lineages.values():
            whys = [None, *one.endings]
            found += [segment for segment, before in zip(one.segments, whys, strict=False) if before in BREAKS]
        return [segment for segment in found if segment.datetime_start is not None]

    @cached_property
    def promotions(self) -> int:
        """How often one that was paused went on."""
        return sum(
            before == PAUSED and segment.datetime_start is not None
            for one in self.lineages.values()
            for segment, before in zip(one.segments[1:], one.endings, strict=False)
        )

    def name_of(self, lineage: Lineage) -> str:
        """As its MLflow run is called."""
        return run_name(lineage.number, lineage.head.params or lineage.config or {})


def values_of(lineage: Lineage, spec: StudySpec) -> dict[str, Any]:
    """Its objectives at its best epoch."""
    best = lineage.best
    if best is None:
        return {}
    return {spec.monitor: best["value"], **{name: best["metrics"][name] for name in spec.others}}
