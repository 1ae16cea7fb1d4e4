"""What the plots show, worked out once for pictures and for the interactive report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.report.found import Found
from pipeline.report.pages import distributions
from pipeline.sweep import halving
from pipeline.sweep.lineage import Lineage, why_ended
from pipeline.sweep.pruners import PAUSING

# Colours that most eyes tell apart, on light and on dark (after Okabe and Ito).
ENDS = {
    "running": "#56b4e9",
    "complete": "#009e73",
    "paused": "#e6a532",
    "pruned": "#b08968",
    "preempted": "#8f7fd6",
    "lost": "#d55e00",
    "out_of_memory": "#cc79a7",
    "hang": "#a3485f",
    "diverged": "#7a7a7a",
    "bug": "#c0392b",
    "duplicate": "#bbbbbb",
}
KILLED = ("preempted", "lost", "out_of_memory", "hang")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The monitored metric of a configuration; `rung` is the last epoch of comparison that it has reached."""

    lineage: Lineage
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    rung: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A segment in the timeline.

    Attributes:
        lane: which of the workers that were at work at the same time, from 0.
        after: the segment that was broken off and that this one goes on from, if it does.
    """

    lineage: Lineage
    trial: FrozenTrial
    host: str
    lane: int
    start: datetime
    end: datetime
    ended: str
    after: int | None


def rungs(found: Found) -> list[int]:
    """The epochs at which configurations are compared, and the last one."""
    spec = found.spec
    if spec.pruner in PAUSING:
        return halving.rungs(min_epochs=spec.min_epochs, max_epochs=spec.max_epochs, eta=spec.eta)
    return [spec.max_epochs]


def curves(found: Found) -> list[Curve]:
    """Of the configurations that have reported a number, by number."""
    levels = sorted({*rungs(found), *(one.extended for one in found.lineages.values() if one.extended)})
    result = []
    for lineage in found.lineages.values():
        points = [(e, float(v)) for e, v in sorted(lineage.head.intermediate_values.items()) if math.isfinite(v)]
        if points:
            reached = [level for level in levels if level <= lineage.epochs]
            result.append(
                Curve(
                    lineage=lineage,
                    epochs=tuple(epoch for epoch, _ in points),
                    values=tuple(value for _, value in points),
                    rung=max(reached, default=0),
                )
            )
    return result


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale shows them better."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 10


def bars(found: Found) -> list[Bar]:
    """The segments in the order in which they began, each in the first lane of its host that was free."""
    began = sorted(
        (
            (trial.datetime_start, lineage, trial)
            for lineage in found.lineages.values()
            for trial in lineage.segments
            if trial.datetime_start is not None
        ),
        key=lambda one: (one[0], one[2].number),
    )
    why = {trial.number: why_ended(trial) for _, _, trial in began}
    free: dict[str, list[datetime]] = {}
    result = []
    for start, lineage, trial in began:
        host = str(trial.user_attrs.get("worker", {}).get("host", "")).partition(" ")[0] or "unknown"
        end = max(trial.datetime_complete or found.at, start)
        lanes = free.setdefault(host, [])
        lane = next((number for number, until in enumerate(lanes) if until <= start), len(lanes))
        lanes[lane : lane + 1] = [end]
        parent = trial.user_attrs["parent"]
        result.append(
            Bar(
                lineage=lineage,
                trial=trial,
                host=host,
                lane=lane,
                start=start,
                end=end,
                ended=why[trial.number] or "running",
                after=parent if why.get(parent) in KILLED else None,
            )
        )
    return result


def survival(found: Found) -> list[tuple[int, int, int]]:
    """Of each epoch of comparison: how many have reached it, and how many have gone on from there."""
    epochs = [one.epochs for one in found.lineages.values()]
    return [(rung, sum(e >= rung for e in epochs), sum(e > rung for e in epochs)) for rung in rungs(found)]


def as_optuna(found: Found) -> optuna.Study:
    """The study for Optuna's own plots: one complete trial for each configuration with a result, by its best value.

    It lives in memory. Trials have their configurations' numbers; whatever has no result is a failed trial.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory is no news in a notebook
    study = optuna.create_study(study_name=found.name, direction=found.spec.direction)
    optuna.logging.set_verbosity(verbosity)
    for number in range(max(found.lineages, default=-1) + 1):
        lineage = found.lineages.get(number)
        judged = lineage is not None and lineage.best is not None and found.states[number] != "failed"
        if lineage is None or not judged:
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        trial = create_trial(
            value=float((lineage.best or {})["value"]),
            params=lineage.head.params,
            distributions=lineage.head.distributions,
        )
        trial.datetime_start = lineage.segments[0].datetime_start
        trial.datetime_complete = lineage.head.datetime_complete or found.at
        study.add_trial(trial)
    return study


def varied(found: Found) -> list[str]:
    """The parameters that have more than one value among the configurations with a result, by name."""
    values: dict[str, set[object]] = {}
    for one in found.ranking:
        for name, value in one.head.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, seen in values.items() if len(seen) > 1)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A parameter's axis. `choices` are those of a categorical one, as texts."""

    name: str
    low: float
    high: float
    log: bool
    choices: tuple[str, ...]

    @classmethod
    def of(cls, found: Found, name: str) -> "Scale":
        one = distributions(found)[name]
        if isinstance(one, CategoricalDistribution):
            choices = tuple(str(choice) for choice in one.choices)
            return cls(name=name, low=0, high=max(1, len(choices) - 1), log=False, choices=choices)
        assert isinstance(one, FloatDistribution | IntDistribution)
        return cls(name=name, low=float(one.low), high=float(one.high), log=one.log, choices=())

    def place(self, value: Any) -> float:
        """Where a value lies, from 0 to 1; nowhere where the parameter has none."""
        if value is None:
            return math.nan
        at = float(self.choices.index(str(value))) if self.choices else float(value)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        return float(((math.log10(at) if self.log else at) - low) / ((high - low) or 1.0))

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices:
            return [(self.place(one), one[:16]) for one in self.choices]
        return [(0.0, f"{self.low:.4g}"), (1.0, f"{self.high:.4g}")]


def importances(found: Found, study: optuna.Study) -> dict[str, float]:
    """How much each parameter decides whether a configuration is among the best tenth; empty if nothing tells.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), which takes milliseconds for a thousand configurations.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    names = varied(found)
    values = {float((one.best or {})["value"]) for one in found.ranking}
    if len(found.ranking) < 4 or len(values) < 2 or not names:
        return {}
    everywhere = [name for name in names if all(name in one.head.params for one in found.ranking)]
    if not everywhere:
        return {}
    found_out = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=everywhere)
    return {name: float(value) for name, value in found_out.items()}


TITLES = {
    "curves": "Learning curves",
    "timeline": "Timeline of segments",
    "history": "Optimisation history",
    "importances": "Parameter importances",
    "parallel": "Parallel coordinates",
    "slice": "Slices",
    "rungs": "Rung survival",
}


def descriptions(found: Found) -> dict[str, str]:
    """What each plot shows, in words: for who cannot see it, and below it for who can."""
    spec, drawn, segments = found.spec, curves(found), bars(found)
    best = found.ranking[0] if found.ranking else None
    leader = f" The best is #{best.number:02d} with {(best.best or {})['value']:.6g}." if best is not None else ""
    killed = sum(bar.ended in KILLED for bar in segments)
    gone_on = sum(bar.after is not None for bar in segments)
    steps = "; ".join(f"epoch {rung}: {reached} reached it, {on} went on" for rung, reached, on in survival(found))
    names = ", ".join(varied(found))
    return {
        "curves": f"{spec.monitor} after each epoch, of {len(drawn)} configurations, coloured by the last epoch of "
        f"comparison they have reached.{leader}",
        "timeline": f"{len(segments)} segments, each in the lane of a worker. {killed} were killed or stopped (a "
        f"cross, where that was noticed), {gone_on} go on from one of those (the line to it), each from its last "
        "checkpoint: nothing before it is trained again.",
        "history": f"The best {spec.monitor} of each configuration, whatever epochs it has had, and the best so "
        f"far.{leader}",
        "importances": "How much each parameter decides whether a configuration is among the best tenth (PED-ANOVA).",
        "parallel": f"A line for each configuration through its {names} and its best {spec.monitor}.",
        "slice": f"The best {spec.monitor} of each configuration against each of {names}.",
        "rungs": f"How many configurations have reached each epoch of comparison. {steps}.",
    }
