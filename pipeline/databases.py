"""SQLite databases: their addresses, and new ones, there as a whole or not at all.

Migrations on SQLite are no transactions: a database whose creation was cut short can never be opened again.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL, in which letters may be percent-encoded; None for other databases."""
    if not url.startswith("sqlite"):
        return None
    database = make_url(url).database
    return Path(database) if database else None


def sqlite_url(file: Path) -> str:
    """The URL of a file, whatever its name: a percent sign in it would else be taken for a code."""
    return f"sqlite:///{str(file).replace('%', '%25')}"


@contextmanager
def created_whole(file: Path) -> Iterator[Path]:
    """Yields where to create a database; once that has succeeded, it is `file`.

    Whoever enters must keep others out, and close all connections before leaving. What a kill leaves behind is
    removed by the next to enter.
    """
    folder = file.with_name(f".{file.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / file.name
        (folder / file.name).rename(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
