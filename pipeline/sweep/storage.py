"""Optuna's storage, opened so that several processes can share it safely.

SQLite, as Optuna opens it, lets two processes claim one trial: `SELECT ... FOR UPDATE` does nothing there. Each
transaction therefore begins IMMEDIATE, which makes writers wait for each other, in WAL mode, which keeps them
out of the readers' way.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from pipeline.databases import created_whole, sqlite_file, sqlite_url
from pipeline.errors import ThawError, UsageError
from pipeline.sweep.rows import RowStorage

HEARTBEAT_S = 10
GRACE_S = 120  # by the database's clock, which writes the heartbeats and says which are stale
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs"} | {
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse")
}
_LOCK = 0x74686177  # "thaw"


def redacted(url: str) -> str:
    """The URL as it may be shown: without its password, and without its parameters, where one may be as well."""
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def check_url(url: str) -> None:
    """Raises UsageError for a URL that cannot be read, or in which a password goes astray; it is not repeated there."""
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError("--storage: not a database URL; expected for instance sqlite:///optuna.db") from None
    if "@" in (parsed.host or ""):
        raise UsageError("--storage: an @ in the URL's password has to be written as %40")


def prepare_storage(url: str) -> None:
    """Creates or migrates the study database; only then may workers open it.

    Two processes that migrate a fresh database at once crash, so they take turns.

    Raises:
        UsageError: the URL cannot be understood, or names a database that cannot be reached.
    """
    with _explained(url), locked(url):
        file = sqlite_file(url)
        if file is None or file.exists():
            _create_or_migrate(url)
            return
        with created_whole(file) as new:
            _create_or_migrate(sqlite_url(new))


def _create_or_migrate(url: str) -> None:
    storage = RDBStorage(url, engine_kwargs={"connect_args": _connect_arguments(url)}, skip_compatibility_check=True)
    storage.upgrade()
    storage.engine.dispose()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keeps other processes out of the same block, on whichever machine they are."""
    file = sqlite_file(url)
    if file is not None:
        _refuse_network(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            yield
        return
    if not is_postgresql(url):
        yield
        return
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", connect_args=_connect_arguments(url))
    with _explained(url):
        connection = engine.connect()  # the lock ends with it, whatever becomes of this process
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    try:
        yield
    finally:
        connection.close()
        engine.dispose()


def is_postgresql(url: str) -> bool:
    return make_url(url).get_backend_name() == "postgresql"


def _connect_arguments(url: str) -> dict[str, Any]:
    if sqlite_file(url) is not None:
        # Autocommit, so that SQLAlchemy's "begin" is the only one and can say IMMEDIATE.
        return {"isolation_level": None, "timeout": 60}
    if not is_postgresql(url):
        return {}
    options = {
        "timezone": "UTC",  # Optuna compares heartbeats without a zone: all must be in the same one, whatever a host's
        # What a process has locked that stands still, or whose host is gone: nobody else could end its trial.
        "idle_in_transaction_session_timeout": "10s",
    }
    given = " ".join(f"-c {name}={value}" for name, value in options.items())
    return {"connect_timeout": 10, "keepalives_idle": 30, "options": given}


def _refuse_network(file: Path) -> None:
    """SQLite's locks, and the memory that WAL shares, do not work between machines, and not well on one."""
    kind = file_system(file, Path("/proc/self/mountinfo"))
    if kind in NETWORK:
        raise UsageError(
            f"--storage: {file} lies on a network file system ({kind}), where SQLite cannot be shared safely; "
            "name a file on a local disk, or a PostgreSQL database"
        )


def file_system(file: Path, mounts: Path) -> str | None:
    """The type of the file system that a file is, or would be, on; None where the table of mounts does not say."""
    if not mounts.is_file():
        return None
    resolved, found = file.resolve(), (0, "")
    for line in mounts.read_text().splitlines():
        fields, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4]))
        if resolved.is_relative_to(point):
            found = max(found, (len(point.parts), source.split()[0]), key=lambda one: one[0])
    return found[1] or None


def open_storage(url: str) -> RowStorage:
    """Opens a study database that `prepare_storage` has created.

    Raises:
        ThawError: it is not there or cannot be read.
    """
    with _explained(url):
        return _open(url)


def _open(url: str) -> RowStorage:
    file = sqlite_file(url)
    if file is not None:
        _refuse_network(file)
    if file is not None and not file.is_file():
        raise ThawError(f"{redacted(url)}: no such study database; start a sweep first, or name another --storage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, used as documented
        storage = RowStorage(
            url,
            engine_kwargs={"connect_args": _connect_arguments(url), "pool_pre_ping": file is None},
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            skip_compatibility_check=True,
            skip_table_creation=True,
        )
    if file is not None:
        sqlalchemy.event.listen(storage.engine, "connect", _configure_sqlite)
        sqlalchemy.event.listen(storage.engine, "begin", _begin_immediate)
        storage.engine.dispose()  # connections from before the listeners are not configured
    return storage


def is_away(error: Exception) -> bool:
    """Whether a database could not be reached, or not be used just now: nothing is wrong with what was asked of it."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    if isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated:
        return True
    return isinstance(
        cause,
        sqlalchemy.exc.OperationalError
        | sqlalchemy.exc.InterfaceError
        | sqlalchemy.exc.PendingRollbackError  # what a session says that has lost its connection
        | sqlalchemy.exc.TimeoutError,
    )


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raises UsageError for what goes wrong with a database as its user can cause it."""
    check_url(url)
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, optuna.exceptions.OptunaError) as error:
        raise UsageError(f"--storage {redacted(url)}: {_first_line(error)}") from error


def _configure_sqlite(connection: sqlalchemy.engine.interfaces.DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _first_line(error: Exception) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0]
