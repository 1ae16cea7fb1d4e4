"""What the integration tests share: a workplace for each test, cleaned of every process it has started."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.commands import Workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A folder where commands are run, with databases of its own."""
    place = Workplace(tmp_path / "work")
    yield place
    place.close()


@pytest.fixture(scope="module")
def new_workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Workplace]]:
    """Makes workplaces that live as long as the module's tests."""
    made: list[Workplace] = []

    def make(name: str) -> Workplace:
        made.append(Workplace(tmp_path_factory.mktemp(name) / "work"))
        return made[-1]

    yield make
    for place in made:
        place.close()
