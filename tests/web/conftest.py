from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from psycopg import AsyncConnection

from ops.harness.postgres import Databases
from tests.support.web_harness import ManualWorker, WebHarness, served


@pytest.fixture
async def web_harness(database_url: str) -> AsyncIterator[WebHarness]:
    async with served(database_url) as web_harness:
        yield web_harness


@pytest.fixture
async def ann(web_harness: WebHarness) -> aiohttp.ClientSession:
    return await web_harness.client("ann")


@pytest.fixture
async def bob(web_harness: WebHarness) -> aiohttp.ClientSession:
    return await web_harness.client("bob")


@pytest.fixture
async def manual_worker(conn: AsyncConnection[Any]) -> ManualWorker:
    return await ManualWorker.register(conn)


@pytest.fixture(scope="module")
def shared_database_url(databases: Databases, template: str) -> Iterator[str]:
    """For modules of refusals, which leave nothing behind that their neighbours could see."""
    name = databases.create(template)
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture(scope="module")
async def shared_harness(shared_database_url: str) -> AsyncIterator[WebHarness]:
    async with served(shared_database_url) as web_harness:
        yield web_harness


@pytest.fixture(scope="module")
async def anyone(shared_harness: WebHarness) -> aiohttp.ClientSession:
    return await shared_harness.client("anyone")
