"""A worker dies right before one of its writes to a database, at whichever; the next one puts it right."""

import os
import random
import sqlite3
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.integration.commands import Workplace, assert_same_training
from tests.integration.in_process import in_process, open_quick, work_on

CONFIGURATIONS = 3
DEATHS = 6
DIED = 9
DATABASES = "mlflow.db", "optuna.db"


def _work(folder: Path, name: str, die_at: int, results: Connection) -> None:
    """Works on a study until nothing is left, or dies right before its `die_at`-th commit. Sends their count."""
    import sqlalchemy

    commits = 0

    def before_commit(_: object) -> None:
        nonlocal commits
        commits += 1
        if commits == die_at:
            os._exit(DIED)

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", before_commit)
    work_on(folder, name)
    results.send(commits)


def _work_refused(folder: Path, name: str, database: str, results: Connection) -> None:
    """Works on a study while a database refuses one transaction in five, as it ends. Sends how many."""
    import sqlalchemy

    from pipeline.sweep import patience

    patience.FIRST_PAUSE_S = 0.001
    chance, refused = random.Random(0), 0

    def refuse(connection: sqlalchemy.Connection) -> None:
        nonlocal refused
        if str(connection.engine.url).endswith(database) and chance.random() < 0.2:
            refused += 1
            raise sqlalchemy.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("database is locked"))

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", refuse)
    work_on(folder, name)
    results.send(refused)


@pytest.fixture(scope="module")
def undisturbed(new_workplace) -> tuple[Workplace, int]:
    """A folder with a study for each test, and how many commits it took to train the study `whole`."""
    place = new_workplace("cut")
    names = ["whole", *(f"cut-{part}" for part in range(DEATHS)), *DATABASES]
    in_process(open_quick, place.folder, names, CONFIGURATIONS, "halving")
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
    # One in each part of the training.
    die_at = random.Random(seed).randrange(1 + part * commits // DEATHS, 1 + (part + 1) * commits // DEATHS)
    print(f"KILL_SEED={seed}, dies before commit {die_at} of {commits}")
    name = f"cut-{part}"
    in_process(_work, workplace.folder, name, die_at, code=DIED)
    in_process(_work, workplace.folder, name, -1)
    assert_as_whole(workplace, name)


@pytest.mark.parametrize("database", DATABASES)
def test_a_database_that_refuses_one_write_in_five_is_no_configurations_fault(undisturbed, database):
    workplace, _ = undisturbed
    assert in_process(_work_refused, workplace.folder, database, database) > 5
    # A claim whose answer was lost is given up, and made anew.
    assert {trial.user_attrs["ended"] for trial in workplace.trials(database)} <= {"paused", "complete", "preempted"}
    assert_as_whole(workplace, database)


def assert_as_whole(workplace, name):
    assert decisions(workplace, name) == decisions(workplace, "whole")
    lineages = workplace.study(name).lineages()
    assert len(workplace.runs(kind="configuration", study=name)) == CONFIGURATIONS
    for number, lineage in lineages.items():
        found = workplace.trained(study=name, configuration=str(number))
        assert_same_training(found, workplace.trained(study="whole", configuration=str(number)))
        assert [step for step, _ in found.curves["loss"]] == list(range(1, lineage.epochs + 1))
