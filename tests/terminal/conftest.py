"""A screen of any size, and the study that was killed twice."""

from collections.abc import Callable, Iterator

import pytest

from pipeline.report.found import Found
from tests.report.studies import found_in
from tests.terminal.screen import Screen


@pytest.fixture
def screen(monkeypatch) -> Iterator[Callable[..., Screen]]:
    """Makes screens of so many columns and lines."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    made: list[Screen] = []

    def make(columns: int, lines: int = 24) -> Screen:
        made.append(Screen(columns, lines))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Found:
    return found_in(tmp_path_factory.mktemp("study"))
