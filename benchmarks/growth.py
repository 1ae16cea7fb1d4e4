"""What coordinating a study costs as it grows: the claim of a segment, the draw of a configuration, an epoch's report.

`python -m benchmarks.growth` fills a study on SQLite with finished configurations, as halving leaves them behind, and
times one worker that goes on with it. Beside the draw stands Optuna's sampler alone, on as many trials in memory.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.sweep.samplers import numbered_trial, sampling_view
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.storage import prepare_storage
from pipeline.sweep.study import Study

SIZES = (100, 1_000, 10_000)
ROUNDS = 9
RUNGS = (1, 3, 9)
MOST_MS = 30.0
SPACE = {"lr": FloatDistribution(1e-4, 1.0, log=True), "width": IntDistribution(4, 128)}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Medians, in milliseconds; `alone` is Optuna's sampler without us."""

    size: int
    claim: float
    draw: float
    report: float
    alone: float


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with TemporaryDirectory(prefix="benchmark-") as folder:
        url = f"sqlite:///{Path(folder) / 'optuna.db'}"
        prepare_storage(url)
        spec = StudySpec(
            experiment="growth.py",
            code="",
            data=None,
            data_options={},
            config=None,
            monitor="loss",
            direction="minimize",
            configurations=10**6,
            max_epochs=RUNGS[-1],
            min_epochs=RUNGS[0],
            eta=3,
            pruner="halving",
            sampler="tpe",
            seed=0,
        )
        study = Study.open("growth", url, spec, accept_change=False)
        costs = []
        for size in SIZES:
            _fill(study, size)
            costs.append(_costs(study, size))
    print(f"TPE, two parameters, SQLite; medians of {ROUNDS}, in ms; {os.cpu_count()} cores\n")
    print("finished configurations     claim      draw   sampler alone    report")
    for one in costs:
        print(f"{one.size:>23,} {one.claim:>9.1f} {one.draw:>9.1f} {one.alone:>15.1f} {one.report:>9.1f}")
    first, last = costs[0], costs[-1]
    ours, theirs = (last.claim + last.draw) / (first.claim + first.draw), last.alone / first.alone
    longest = max(one.report for one in costs)
    print()
    print(f"{_reached(longest <= MOST_MS)} a report takes at most {MOST_MS:.0f} ms at any size: {longest:.1f}")
    print(f"{_reached(ours <= theirs)} claim and draw grow no faster than the sampler: x {ours:.1f}, x {theirs:.1f}")


def _reached(is_reached: bool) -> str:
    return "reached    " if is_reached else "NOT REACHED"


def _fill(study: Study, size: int) -> None:
    """Adds configurations until there are so many, each as good as its number says."""
    for number in range(len(study.lineages()), size):
        parent = None
        # One in three went on from each rung, as it is with halving.
        for place in range(1 + (number % 3 == 0) + (number % 9 == 0)):
            trial = _segment(number, place, parent)
            trial_id = study.storage.create_new_trial(study.id, trial)
            parent = study.storage.get_trial(trial_id).number


def _segment(number: int, place: int, parent: int | None) -> FrozenTrial:
    epochs, complete = RUNGS[place], RUNGS[place] == RUNGS[-1]
    value = _value(number)
    name = f"s0-e{epochs:05d}-b000000-t{number:06d}"
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=value if complete else None,
        params={"lr": 10 ** (-4 + 4 * value), "width": 4 + number * 31 % 125},
        distributions=dict(SPACE),
        intermediate_values=dict.fromkeys(range(1, epochs + 1), value),
        user_attrs={
            "configuration": number,
            "parent": parent,
            "until": epochs,
            "start": None,
            "ended": "complete" if complete else "paused",
            "config": {"lr": value},
            "run_id": "0" * 32,
            "progress": {
                "checkpoint": name,
                "epochs": epochs,
                "best": {"epoch": epochs, "value": value, "checkpoint": name},
            },
        },
    )


def _value(number: int) -> float:
    """Between 0 and 1; the lower of each three, and nine, are those that went on."""
    rank = (number % 3 != 0) + (number % 9 != 0)
    return (rank + number * 0.618 % 1) / 3


def _costs(study: Study, size: int) -> Costs:
    study.lineages()  # a worker has read what is there long since
    claims, draws, reports = [], [], []
    for _ in range(ROUNDS):
        claim_ms, found = _timed(lambda: next_segment(study))
        trial_id, number = found.head._trial_id, found.number
        claims.append(claim_ms)
        if "config" not in found.head.user_attrs:
            draw_ms, _ = _timed(lambda trial_id=trial_id, number=number: _draw(study, trial_id, number))
            draws.append(draw_ms)
            study.set(trial_id, "config", {})
        progress = {"checkpoint": "x", "epochs": 1, "best": {"epoch": 1, "value": 1.0, "checkpoint": "x"}}
        reports.append(_timed(lambda trial_id=trial_id, progress=progress: _report(study, trial_id, progress))[0])
        study.end(trial_id, TrialState.PRUNED, "paused")
    alone = _alone([lineage.head for lineage in study.lineages().values()])
    return Costs(size=size, claim=median(claims), draw=median(draws), report=median(reports), alone=alone)


def _draw(study: Study, trial_id: int, number: int) -> None:
    trial = numbered_trial(sampling_view(study, study.spec, number), trial_id, number)
    _suggest(trial)


def _suggest(trial: optuna.Trial) -> None:
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    trial.suggest_int("width", 4, 128)


def _report(study: Study, trial_id: int, progress: dict[str, Any]) -> None:
    study.set(trial_id, "progress", progress)
    study.report(trial_id, 1, 1.0)


def _alone(trials: list[FrozenTrial]) -> float:
    """A draw of Optuna's sampler from a study in memory."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.add_trials(trial for trial in trials if trial.state.is_finished())
    return median(_timed(lambda: _suggest(study.ask()))[0] for _ in range(ROUNDS))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began_s = time.perf_counter()
    found = call()
    return 1000 * (time.perf_counter() - began_s), found


if __name__ == "__main__":
    main()
