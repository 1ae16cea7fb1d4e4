"""A worker dies right before one of its writes to a database, at whichever; the next one puts it right."""

import multiprocessing
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.integration.commands import Workplace, assert_same_training
from tests.integration.preloaded import PRELOADED
from tests.integration.sweeps import QUICK

CONFIGURATIONS = 3
DEATHS = 10
DIED = 9


def _open(folder: Path, name: str, results: Connection) -> None:
    """Creates a study of a few configurations."""
    from pipeline.experiment import load_experiment
    from pipeline.session import Plan, Session
    from pipeline.signals import StopRequest

    session = _enter(folder, lambda: Session(None, StopRequest(), None))
    plan = Plan(
        configurations=CONFIGURATIONS, max_epochs=None, min_epochs=1, eta=3, pruner="halving", sampler="tpe", seed=0
    )
    session.open_sweep(load_experiment(QUICK), None, name=name, plan=plan, workers=1, accept_change=False)
    results.send(None)


def _work(folder: Path, name: str, die_at: int, results: Connection) -> None:
    """Works on a study until nothing is left, or dies right before its `die_at`-th commit. Sends their count."""
    import sqlalchemy

    from pipeline.signals import StopRequest
    from pipeline.sweep.study import Study
    from pipeline.sweep.worker import work

    commits = 0

    def before_commit(_: object) -> None:
        nonlocal commits
        commits += 1
        if commits == die_at:
            os._exit(DIED)

    study = _enter(folder, lambda: Study.load(name, f"sqlite:///{folder / 'optuna.db'}"))
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", before_commit)
    assert work(study, StopRequest(), checkpoint_every_s=60)
    results.send(commits)


def _enter(folder, make):
    import mlflow

    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return make()


def in_process(target, *arguments, code: int = 0):
    """What `target` sends from a process of its own that ends with `code`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    process.join()
    found, exitcode = ours.recv() if ours.poll() and not code else None, process.exitcode
    ours.close()
    process.close()
    assert exitcode == code
    return found


@pytest.fixture(scope="module")
def undisturbed(new_workplace) -> tuple[Workplace, int]:
    """A folder with the study `whole`, and how many commits it took to train it."""
    place = new_workplace("cut")
    in_process(_open, place.folder, "whole")
    return place, in_process(_work, place.folder, "whole", -1)


def decisions(workplace: Workplace, name: str):
    reached = [t for t in workplace.study(name).trials() if t.user_attrs["ended"] in ("paused", "complete")]
    return [
        (t.user_attrs["configuration"], t.user_attrs["until"], t.params, t.intermediate_values)
        for t in sorted(reached, key=lambda t: t.datetime_complete)
    ]


@pytest.mark.parametrize("part", range(DEATHS))
def test_a_worker_that_dies_before_any_write_changes_no_decision_and_no_bit(undisturbed, part):
    workplace, commits = undisturbed
    assert commits > 100
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    # One in each tenth of the training.
    die_at = random.Random(seed).randrange(1 + part * commits // DEATHS, 1 + (part + 1) * commits // DEATHS)
    print(f"KILL_SEED={seed}, dies before commit {die_at} of {commits}")
    name = f"cut-{part}"
    in_process(_open, workplace.folder, name)
    in_process(_work, workplace.folder, name, die_at, code=DIED)
    in_process(_work, workplace.folder, name, -1)
    assert decisions(workplace, name) == decisions(workplace, "whole")
    lineages = workplace.study(name).lineages()
    assert len(workplace.runs(kind="configuration", study=name)) == CONFIGURATIONS
    for number, lineage in lineages.items():
        found = workplace.trained(study=name, configuration=str(number))
        assert_same_training(found, workplace.trained(study="whole", configuration=str(number)))
        assert [step for step, _ in found.curves["loss"]] == list(range(1, lineage.epochs + 1))
