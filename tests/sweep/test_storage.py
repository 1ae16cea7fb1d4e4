"""One SQLite file, many processes."""

import multiprocessing
import threading
import traceback
from pathlib import Path

import psycopg
import pytest
from optuna.trial import TrialState

from pipeline.databases import sqlite_file, sqlite_url
from pipeline.errors import ThawError, UsageError
from pipeline.sweep.storage import file_system, locked, open_storage, prepare_storage, redacted
from pipeline.sweep.study import Study
from tests.integration.commands import wait_until
from tests.postgres import PASSWORD
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


def test_eight_processes_claim_every_waiting_trial_exactly_once(tmp_path, url, context):
    study = new_study(tmp_path, url)
    for number in range(TRIALS):
        study.add_configuration(number, until=1)
    answers = in_processes(context, claim_all, study.url)
    claimed = [number for numbers, _ in answers for number in numbers]
    assert sorted(claimed) == list(range(TRIALS))
    owner = {number: identity for numbers, identity in answers for number in numbers}
    for trial in Study.load("s", study.url).trials():
        assert trial.state is TrialState.RUNNING
        assert trial.user_attrs["worker"] == owner[trial.number], trial.number


def test_processes_that_create_one_study_at_once_all_find_it(url, context):
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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:1/none?user=me&password=secret",
        "postgresql://me@127.0.0.1:1/none?sslpassword=secret",
        "postgresql://me:pass@secret@127.0.0.1:1/none",
        "postgresql://me:pass@secret:x@127.0.0.1:1/none",
    ],
)
def test_a_password_in_another_place_of_a_url_is_not_shown_either(url):
    for look in (prepare_storage, open_storage):
        with pytest.raises(UsageError, match="--storage") as raised:
            look(url)
        chain = "".join(traceback.format_exception(raised.value))
        assert "secret" not in str(raised.value)
        assert "ValueError" not in chain


def refused(url):
    """What is said of a database that cannot be used, wherever it is noticed."""
    said = []
    for look in (prepare_storage, open_storage):
        with pytest.raises(UsageError) as raised:
            look(url)
        said.append(str(raised.value))
        chain = [raised.value, raised.value.__cause__, raised.value.__context__]
        assert not [one for one in chain if one is not None and PASSWORD in str(one)]
        assert "\n" not in said[-1]
        assert said[-1].startswith("--storage postgresql://thaw:***@127.0.0.1:")
    return said


def test_what_is_wrong_with_a_server_is_said_in_one_line_without_the_password(postgres):
    for said in refused(postgres.url("postgres", password="wrong")):
        assert 'password authentication failed for user "thaw"' in said
    for said in refused(postgres.url("nowhere")):
        assert 'database "nowhere" does not exist' in said
    url = postgres.database()
    prepare_storage(url)
    postgres.stop()
    try:
        for said in refused(url):
            assert "Connection refused" in said
    finally:
        postgres.start()
    open_storage(url).engine.dispose()


def test_after_a_restart_of_the_server_a_study_goes_on(tmp_path, postgres):
    study = new_study(tmp_path, postgres.database())
    study.add_configuration(0, until=1)
    postgres.stop()
    postgres.start()
    assert study.claim(study.lineages()[0].head), "broken connections are found out before they are used"
    study._heartbeats.engine.dispose()


def test_who_prepares_a_study_in_postgresql_waits_for_whoever_does(postgres):
    url, done = postgres.database(), []

    def prepare() -> None:
        with locked(url):
            done.append("second")

    def waits() -> bool:
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
        return found is not None

    second = threading.Thread(target=prepare)
    with locked(url):
        second.start()
        wait_until(lambda: done or waits(), "the second has asked for the lock")
        done.append("first")
    second.join()
    assert done == ["first", "second"]


def test_the_server_itself_frees_what_a_process_has_locked_that_stands_still(tmp_path, postgres):
    study = new_study(tmp_path, postgres.database())
    with study._heartbeats.engine.connect() as connection:
        limit = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
    study._heartbeats.engine.dispose()
    assert limit == "10s"


MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /home rw shared:2 - nfs4 server:/home rw,vers=4.2
31 30 0:27 / /home/my\040disk rw - ext4 /dev/sdb1 rw
32 22 0:28 / /mnt/team rw master:3 - fuse.sshfs me@host:/ rw
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/var/optuna.db", "ext4"),
        ("/home/me/optuna.db", "nfs4"),
        ("/home/my disk/optuna.db", "ext4"),
        ("/mnt/team/a/optuna.db", "fuse.sshfs"),
        ("/mnt/teams/optuna.db", "ext4"),
    ],
)
def test_the_file_system_of_a_file_is_that_of_the_nearest_mount_above_it(tmp_path, file, kind):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert file_system(Path(file), tmp_path / "mountinfo") == kind
    assert file_system(Path(file), tmp_path / "none") is None


def test_sqlite_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "optuna.db"
    prepare_storage(sqlite_url(file))
    monkeypatch.setattr("pipeline.sweep.storage.file_system", lambda *_: "nfs4")
    for look in (prepare_storage, open_storage):
        with pytest.raises(UsageError, match=r"optuna\.db lies on a network file system \(nfs4\).* PostgreSQL"):
            look(sqlite_url(file))


def test_only_sqlite_is_a_file():
    assert sqlite_file("sqlite:///a b/optuna.db") == Path("a b/optuna.db")
    assert sqlite_file("sqlite:///a%20b/%C3%A9.db") == Path("a b/é.db")
    assert sqlite_file("sqlite://") is None
    assert sqlite_file("postgresql://host/sqlite") is None
