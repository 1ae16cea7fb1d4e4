"""Trials as workers leave them behind, and a study on a fresh SQLite file."""

from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.spec import StudySpec
from pipeline.sweep.storage import prepare_storage
from pipeline.sweep.study import Study

STATES = {
    None: TrialState.RUNNING,
    "waiting": TrialState.WAITING,
    "complete": TrialState.COMPLETE,
    "paused": TrialState.PRUNED,
    "pruned": TrialState.PRUNED,
    "preempted": TrialState.FAIL,
    "lost": TrialState.FAIL,
    "out_of_memory": TrialState.FAIL,
    "hang": TrialState.FAIL,
    "bug": TrialState.FAIL,
    "diverged": TrialState.FAIL,
}


def segment(
    number: int,
    configuration: int,
    ended: str | None,
    *,
    parent: int | None = None,
    epochs: int = 0,
    start: str | None = None,
    until: int = 1,
    values: dict[int, float] | None = None,
    **attrs: Any,
) -> FrozenTrial:
    """A trial that ended so (None: it runs), having committed `epochs`; 0 is no checkpoint of its own."""
    state = STATES[ended]
    attrs |= {"configuration": configuration, "parent": parent, "until": until, "start": start}
    if ended not in (None, "waiting"):
        attrs["ended"] = ended
    checkpoint = checkpoint_of(number, epochs) if epochs else start
    best = {"epoch": epochs, "value": 0.5, "checkpoint": checkpoint} if epochs else None
    attrs.setdefault("progress", {"checkpoint": checkpoint, "epochs": epochs, "best": best})
    trial = optuna.trial.create_trial(
        state=state,
        value=0.5 if state is TrialState.COMPLETE else None,
        params={"lr": 0.1},
        distributions={"lr": FloatDistribution(0.0, 1.0)},
        user_attrs=attrs,
        intermediate_values=values or {},
    )
    trial.number = number
    return trial


def checkpoint_of(trial: int, epochs: int) -> str:
    return f"s0-e{epochs:05d}-b000000-t{trial:06d}"


def spec(**changes: Any) -> StudySpec:
    given: dict[str, Any] = {
        "experiment": "quick.py",
        "code": "c" * 64,
        "data": None,
        "data_options": {},
        "config": None,
        "monitor": "loss",
        "direction": "minimize",
        "configurations": 9,
        "max_epochs": 9,
        "min_epochs": 1,
        "eta": 3,
        "pruner": "halving",
        "sampler": "random",
        "seed": 0,
    }
    return StudySpec(**(given | changes))


def new_study(folder: Path, url: str | None = None, **changes: Any) -> Study:
    """A study of this spec, on a fresh SQLite file unless another database is named."""
    url = url or f"sqlite:///{folder / 'optuna.db'}"
    prepare_storage(url)
    return Study.open("s", url, spec(**changes), accept_change=False)
