"""How a study stands just now; nothing is changed."""

from collections import Counter
from dataclasses import dataclass

from optuna.trial import TrialState

from pipeline.sweep.finish import state_of
from pipeline.sweep.lineage import REASONS, Lineage
from pipeline.sweep.quota import stored_bytes
from pipeline.sweep.schedule import is_over, is_search_over
from pipeline.sweep.study import Study


@dataclass(frozen=True, kw_only=True)
class ConfigurationStanding:
    """How one configuration stands.

    Attributes:
        state: in the words of its run's tag `state`.
        why: why it failed, or what has broken it off so far.
        size_bytes: what its checkpoints take.
    """

    lineage: Lineage
    state: str
    why: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a study stands.

    Attributes:
        over: whether nothing is left to do.
        left: configurations that are still to be drawn.
    """

    study: Study
    over: bool
    configurations: tuple[ConfigurationStanding, ...]
    left: int

    @property
    def states(self) -> Counter[str]:
        """How many configurations stand how."""
        return Counter(one.state for one in self.configurations)

    @property
    def size_bytes(self) -> int:
        """What the checkpoints of all of them take."""
        return sum(one.size_bytes for one in self.configurations)


def standing(study: Study) -> Standing:
    """Raises ThawError if the study was not finished being created."""
    lineages, sizes, search_over = study.lineages(), stored_bytes(study), is_search_over(study)
    configurations = tuple(
        ConfigurationStanding(
            lineage=lineage,
            state=(state := state_of(lineage, over=search_over)),
            why=_why(lineage, state),
            size_bytes=sizes.get(lineage.number, 0),
        )
        for lineage in lineages.values()
    )
    left = max(0, study.spec.configurations - len(lineages))
    return Standing(study=study, over=is_over(study), configurations=configurations, left=left)


def _why(lineage: Lineage, state: str) -> str:
    if state == "failed":
        error = lineage.head.user_attrs.get("error")
        return f"{lineage.ended}: {error}" if error else str(lineage.ended)
    broken = Counter(why for why in lineage.endings if why in REASONS[TrialState.FAIL])
    return "broken off: " + ", ".join(f"{count} {why}" for why, count in broken.items()) if broken else ""
