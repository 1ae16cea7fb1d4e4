"""Processes that work on a study's trials without training anything."""

from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from pipeline.sweep import process
from pipeline.sweep.study import Study


def claim_all(url: str, start: Barrier, results: Connection) -> None:
    """Tries to claim every waiting trial; sends the numbers of those it got, and who it is."""
    study = Study.load("s", url)
    trials = sorted(study.trials(), key=lambda trial: trial.number)
    start.wait()
    claimed = [trial.number for trial in trials if study.claim(trial)]
    results.send((claimed, process.identity()))
    # The others compare their claims while this one lives: a dead process's trials would be closed.
    start.wait()


def claim_one_and_wait(url: str, results: Connection) -> None:
    """Claims the first waiting trial, says so, and holds it until it is killed."""
    study = Study.load("s", url)
    trial = min(study.trials(), key=lambda one: one.number)
    results.send(study.claim(trial))
    results.recv()


def open_same(url: str, spec: dict[str, Any], start: Barrier, results: Connection) -> None:
    """Creates a study's database and the study, together with others."""
    from pipeline.sweep.spec import StudySpec
    from pipeline.sweep.storage import prepare_storage

    start.wait()
    prepare_storage(url)
    study = Study.open("s", url, StudySpec.from_json(spec), accept_change=False)
    results.send(study.spec.to_json())
