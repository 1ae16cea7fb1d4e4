"""A search whose training is a formula, in a process that may be told to die right before one of its commits."""

import os
from pathlib import Path

import optuna
import sqlalchemy
from optuna.trial import TrialState

from pipeline.sweep.lineage import PREEMPTED
from pipeline.sweep.samplers import numbered_trial, sampling_view
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.study import Study
from tests.sweep.trials import checkpoint_of

DIED = 9


def search(folder: Path, dies_at: int) -> None:
    """Searches until nothing is left, or dies before its `dies_at`-th commit; 0: not at all."""
    commits = 0

    def before_commit(_: object) -> None:
        nonlocal commits
        commits += 1
        if commits == dies_at:
            os._exit(DIED)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = Study.load("s", f"sqlite:///{folder / 'optuna.db'}")
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", before_commit)
    study.close_dead(PREEMPTED)  # as a command does that finds what another has left
    while (found := next_segment(study)) != "done":
        assert found != "wait"
        _train(study, found.number, found.until, found.head._trial_id)


def _train(study: Study, number: int, until: int, trial_id: int) -> None:
    if study.lineages()[number].config is None:
        trial = numbered_trial(sampling_view(study, study.spec, number), trial_id, number)
        drawn = {"lr": trial.suggest_float("lr", 1e-4, 1, log=True), "width": trial.suggest_int("width", 4, 128)}
        study.set(trial_id, "config", drawn)
    params = study.storage.get_trial(trial_id).params
    value = (abs(params["lr"] - 0.1) + params["width"] / 128) / until
    name = checkpoint_of(study.lineages()[number].head.number, until)
    best = {"epoch": until, "value": value, "checkpoint": name}
    study.set(trial_id, "progress", {"checkpoint": name, "epochs": until, "best": best})
    study.report(trial_id, until, value)
    if until < study.spec.max_epochs:
        study.end(trial_id, TrialState.PRUNED, "paused")
    else:
        study.end(trial_id, TrialState.COMPLETE, "complete", value)
