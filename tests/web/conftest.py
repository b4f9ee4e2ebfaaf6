from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from psycopg import AsyncConnection

from tests.conftest import Databases
from tests.web.site import Hands, Site, served


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    async with served(database_url) as site:
        yield site


@pytest.fixture
async def ann(site: Site) -> aiohttp.ClientSession:
    return await site.client("ann")


@pytest.fixture
async def bob(site: Site) -> aiohttp.ClientSession:
    return await site.client("bob")


@pytest.fixture
async def hands(conn: AsyncConnection[Any]) -> Hands:
    return await Hands.register(conn)


@pytest.fixture(scope="module")
def shared_database_url(databases: Databases, template: str) -> Iterator[str]:
    """For modules of refusals, which leave nothing behind that their neighbours could see."""
    name = databases.create(template)
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture(scope="module")
async def shared_site(shared_database_url: str) -> AsyncIterator[Site]:
    async with served(shared_database_url) as site:
        yield site


@pytest.fixture(scope="module")
async def anyone(shared_site: Site) -> aiohttp.ClientSession:
    return await shared_site.client("anyone")
