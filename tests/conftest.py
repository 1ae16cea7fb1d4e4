"""The order of the tests: the longest files first, so that no worker ends alone with one of them; a database server."""

from collections.abc import Iterator

import pytest

from tests.postgres import PostgresServer

LONG = ("chaos", "integration", "test_prove.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in item.path.parts for part in LONG))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()
