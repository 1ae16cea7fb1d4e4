"""The order of the tests: the longest files first, so that no worker ends alone with one of them; a database server."""

import os
from collections.abc import Iterator

import pytest

from tests.postgres import PostgresServer

# Who trains in these processes would draw pictures that no test looks at; those that do say so.
os.environ["PIPELINE_REPORT_EVERY_S"] = "0"
LONG = ("chaos", "integration", "browser", "test_prove.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in item.path.parts for part in LONG))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()
