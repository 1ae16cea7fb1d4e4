"""What a study is: everything that decides its result. Stored in the study; the same name means the same spec."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipeline.errors import UsageError
from pipeline.experiment import Direction


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The spec of a study.

    Attributes:
        experiment: name of the experiment file.
        code: digest of the experiment's source files.
        data: digest of the prepared tables, None without `prepare`.
        data_options: the options of `prepare`.
        config: the one configuration of `train`, None when the study draws them.
        configurations: how many configurations the study draws.
        max_epochs: epochs a configuration gets at most.
        min_epochs: the first rung.
        eta: one in `eta` configurations of a rung goes on.
        others: further objectives beside `monitor`, with their directions.
        constraints: metrics that are to be at most 0.
        pruner_args: arguments of an Optuna pruner.
        points: the first configurations, as far as they are given: enqueued ones, or those of a grid.
        warm_start: the study whose results the sampler is shown as well.
    """

    experiment: str
    code: str
    data: str | None
    data_options: Mapping[str, Any]
    config: Mapping[str, Any] | None
    monitor: str
    direction: Direction
    configurations: int
    max_epochs: int
    min_epochs: int
    eta: int
    pruner: str
    sampler: str
    seed: int
    pruner_args: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = field(default_factory=list)
    warm_start: str | None = None
    others: Mapping[str, Direction] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()

    @property
    def objectives(self) -> dict[str, Direction]:
        """The direction of each monitored metric."""
        return {self.monitor: self.direction, **self.others}

    def __post_init__(self) -> None:
        for name in ("configurations", "max_epochs", "min_epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if self.eta < 2:
            raise UsageError(f"--eta {self.eta}: expected at least 2")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StudySpec":
        return cls(**{**values, "constraints": tuple(values.get("constraints", ()))})

    def differences(self, stored: "StudySpec") -> dict[str, tuple[Any, Any]]:
        """Fields that differ: name -> (stored, given)."""
        pairs = {f.name: (getattr(stored, f.name), getattr(self, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# Changes that a user may accept: the same search over code or data that were touched.
ACCEPTABLE = frozenset({"code", "data"})


def is_growth(name: str, stored: Any, given: Any) -> bool:
    """Whether a change of this field only asks for more of the same search: then it is continued."""
    return name == "configurations" and given > stored


def refuse_change(study: str, differences: Mapping[str, tuple[Any, Any]], *, accept: bool) -> None:
    """Raises unless the differences of a spec are none, or accepted ones.

    Raises:
        UsageError: with the differences, and what to do.
    """
    differences = {name: pair for name, pair in differences.items() if not is_growth(name, *pair)}
    if not differences or (accept and set(differences) <= ACCEPTABLE):
        return
    shown = ", ".join(f"{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in differences.items())
    way_out = "give this one another name with --study"
    if set(differences) <= ACCEPTABLE:
        way_out += ", or continue all the same with --accept-change true"
    raise UsageError(f"study {study!r} exists with another spec ({shown}); {way_out}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
