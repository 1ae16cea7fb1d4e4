"""One SQLite file, many processes."""

import multiprocessing
from pathlib import Path

import pytest
from optuna.trial import TrialState

from pipeline.databases import sqlite_file, sqlite_url
from pipeline.errors import ThawError, UsageError
from pipeline.sweep.storage import open_storage, prepare_storage, redacted
from pipeline.sweep.study import Study
from tests.sweep.claiming import claim_all, open_same
from tests.sweep.trials import new_study, spec

PROCESSES = 8
TRIALS = 200


@pytest.fixture
def context():
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["optuna", "tests.sweep.claiming"])
    return found


def in_processes(context, target, *arguments):
    """Runs `target` in several processes at once and returns what each has sent."""
    start = context.Barrier(PROCESSES)
    started = []
    for _ in range(PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(*arguments, start, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        answers = [connection.recv() for _, connection in started]  # EOFError: it died
        for process, _ in started:
            process.join()
            assert process.exitcode == 0
    finally:
        for process, connection in started:
            process.kill()  # when one has died, the others wait for it at the barrier
            process.join()
            process.close()
            connection.close()
    return answers


def test_eight_processes_claim_every_waiting_trial_exactly_once(tmp_path, context):
    study = new_study(tmp_path)
    for number in range(TRIALS):
        study.add_configuration(number, until=1)
    answers = in_processes(context, claim_all, study.url)
    claimed = [number for numbers, _ in answers for number in numbers]
    assert sorted(claimed) == list(range(TRIALS))
    owner = {number: identity for numbers, identity in answers for number in numbers}
    for trial in Study.load("s", study.url).trials():
        assert trial.state is TrialState.RUNNING
        assert trial.user_attrs["worker"] == owner[trial.number], trial.number


def test_processes_that_create_one_study_at_once_all_find_it(tmp_path, context):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    given = spec().to_json()
    assert in_processes(context, open_same, url, given) == [given] * PROCESSES


def test_a_write_waits_for_another_to_end_instead_of_failing(tmp_path):
    study = new_study(tmp_path)
    with study._heartbeats.engine.connect() as connection:
        connection.begin()  # IMMEDIATE: the writer's lock is held from here on
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        synchronous = connection.exec_driver_sql("PRAGMA synchronous").scalar()
        timeout_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    assert (mode, synchronous, timeout_ms) == ("wal", 1, 60_000)


def test_preparing_twice_keeps_what_is_there(tmp_path):
    study = new_study(tmp_path)
    study.add_configuration(0, until=1)
    prepare_storage(study.url)
    assert len(Study.load("s", study.url).trials()) == 1


def test_the_folder_of_a_database_is_created(tmp_path):
    file = tmp_path / "a" / "é b 5%20" / "optuna.db"
    prepare_storage(sqlite_url(file))
    assert file.is_file()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert open_storage(sqlite_url(file)).get_all_studies() == []


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x/y", "postgresql://127.0.0.1:1/none"])
def test_an_address_that_is_none_is_an_error_of_one_line(url):
    with pytest.raises(UsageError, match="--storage") as raised:
        prepare_storage(url)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database_is_an_error_of_one_line(tmp_path):
    (tmp_path / "optuna.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(UsageError, match="not a database") as raised:
        prepare_storage(f"sqlite:///{tmp_path / 'optuna.db'}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x/y", "postgresql://127.0.0.1:1/none"])
def test_an_address_that_is_none_is_no_bug_when_a_study_is_looked_for(url):
    with pytest.raises(ThawError, match="--storage"):
        open_storage(url)


def test_a_database_that_is_not_there_is_not_created_by_looking(tmp_path):
    with pytest.raises(ThawError, match="no such study database"):
        open_storage(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_never_shown():
    assert redacted("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    with pytest.raises(UsageError) as raised:
        prepare_storage("nodialect://me:secret@host/db")
    assert "secret" not in str(raised.value)


def test_only_sqlite_is_a_file():
    assert sqlite_file("sqlite:///a b/optuna.db") == Path("a b/optuna.db")
    assert sqlite_file("sqlite:///a%20b/%C3%A9.db") == Path("a b/é.db")
    assert sqlite_file("sqlite://") is None
    assert sqlite_file("postgresql://host/sqlite") is None
