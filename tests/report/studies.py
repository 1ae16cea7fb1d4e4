"""A study that was killed twice, as its trials say it: two complete, one paused, one pruned by its rung, one failed."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from pipeline.report.found import Found
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site
from tests.sweep.trials import checkpoint_of, new_study, segment

BEGAN = datetime.fromisoformat("2026-03-01T12:00:00")
SITE = Site(file="quick.py", experiment_id="1", run_id="study-run", tables_run_id=None, tables={}, threads=1)
HOSTILE = "</script><script>alert(1)</script>|`*[x](javascript:alert(1))"


def trials() -> list[FrozenTrial]:
    """#00 was killed in epoch 3 and went on; #01 was paused and promoted; #02 is paused; #03 failed; #04 runs."""
    first, second = checkpoint_of(0, 2), checkpoint_of(1, 3)
    return [
        _trial(0, 0, "preempted", 0, 20, epochs=2, lr=0.1),
        _trial(1, 1, "paused", 0, 30, epochs=3, lr=0.2),
        _trial(2, 0, "complete", 40, 90, parent=0, start=first, epochs=9, lr=0.1, resumed="exact"),
        _trial(3, 1, "lost", 35, 50, parent=1, start=second, epochs=5, lr=0.2, resumed="exact"),
        _trial(4, 1, "complete", 55, 80, parent=3, start=checkpoint_of(3, 5), epochs=9, lr=0.2, resumed="exact"),
        _trial(5, 2, "paused", 80, 85, epochs=1, lr=0.3),
        _trial(6, 3, "diverged", 85, 86, lr=0.4, error=f"ValueError: {HOSTILE}"),
        _trial(7, 4, None, 90, None, lr=0.5),
    ]


def _trial(
    number: int, configuration: int, ended: str | None, began: int, over: int | None, **given: Any
) -> FrozenTrial:
    epochs, lr = given.get("epochs", 0), given.pop("lr")
    values = {epoch: round(lr + 1 / epoch, 6) for epoch in range(1, epochs + 1)}
    run = {"run_id": f"run-{configuration}", "config": {"lr": lr, "act": HOSTILE}, "worker": {"host": "a b", "pid": 1}}
    trial = segment(number, configuration, ended, values=values, **given, **run)
    trial.params = {"lr": lr}
    if epochs:
        progress = trial.user_attrs["progress"]
        best = {**progress["best"], "value": values[epochs], "metrics": {"loss": values[epochs]}}
        trial.user_attrs = {**trial.user_attrs, "progress": {**progress, "best": best}}
    trial.datetime_start = BEGAN + timedelta(seconds=began)
    trial.datetime_complete = None if over is None else BEGAN + timedelta(seconds=over)
    return trial


def study_of(folder: Path, given: list[FrozenTrial], site: Site = SITE, **spec: Any) -> Study:
    study = new_study(folder, **spec)
    study.set_attr("site", site.to_json())
    for trial in given:
        study.storage.create_new_trial(study.id, trial)
    return study


def found_in(folder: Path, **spec: Any) -> Found:
    """The study a hundred seconds after it began."""
    return replace(Found.of(study_of(folder, trials(), **spec)), at=BEGAN + timedelta(seconds=100))
