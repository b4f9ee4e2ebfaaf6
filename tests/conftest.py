"""A PostgreSQL for the tests: one migrated template database for the session, a clone of it for each test."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any, TextIO

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

import migrations
from engine.storage.connections import open_pool
from engine.storage.session import PINNED, set_up
from ops.harness.postgres import Databases, folder_in_memory, temporary_server
from tests.support.pubsub_brokers import broker, emulator, fake
from tests.support.worker_harness import WorkerHarness

__all__ = ["broker", "emulator", "fake"]

Connect = Callable[..., Awaitable[AsyncConnection[TupleRow]]]

# At import, because test modules may read the environment as they are collected: what the developer's shell
# says of his own installation must not reach the tests.
GIVEN_URL = os.environ.get("OUTRIDER_DATABASE_URL")
for variable in [name for name in os.environ if name.startswith(("OUTRIDER_", "PUBSUB_"))]:
    del os.environ[variable]

# Nothing of the server outlives the session, so it need not reach the disk.
QUICK = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the long scenarios too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `long`, or begin with it: it would end last. What is marked `alone` comes last."""

    def marked(item: pytest.Item, name: str) -> bool:
        return item.get_closest_marker(name) is not None

    if not config.getoption("--all"):
        config.hook.pytest_deselected(items=[item for item in items if marked(item, "long")])
        items[:] = [item for item in items if not marked(item, "long")]
    items.sort(key=lambda item: (marked(item, "alone"), not marked(item, "long")))


@pytest.fixture(scope="session")
def machine_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextIO]:
    """The lock that stands for the machine, which all processes of a run of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (shared / "machine.lock").open("w") as lock:
        yield lock


@pytest.fixture(autouse=True)
def place_on_machine(machine_lock: TextIO, request: pytest.FixtureRequest) -> Iterator[None]:
    """A place on the machine beside other tests, or the whole machine for a test that is marked `alone`."""
    alone = request.node.get_closest_marker("alone") is not None
    fcntl.flock(machine_lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(machine_lock, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with nullcontext(GIVEN_URL) if GIVEN_URL else temporary_server(QUICK, folder_in_memory()) as url:
        made = Databases(url)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def template(databases: Databases) -> Iterator[str]:
    """The name of a database with the newest schema, to be cloned. Nobody may be connected to it."""
    name = databases.create()
    migrations.up(databases.url(name))
    yield name
    databases.drop_later(name)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of the test's own, without a schema."""
    name = databases.create()
    yield databases.url(name)
    databases.drop_later(name)


@pytest.fixture
def database_url(databases: Databases, template: str) -> Iterator[str]:
    """A database of the test's own, migrated."""
    name = databases.create(template)
    yield databases.url(name)
    databases.drop_later(name)


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens autocommit connections to the test's database; they are closed at its end.

    `pinned` allows only the plans that the hot statements have in a process.
    """
    async with AsyncExitStack() as stack:

        async def opened(*, pinned: bool = False, **options: Any) -> AsyncConnection[TupleRow]:
            conn = await AsyncConnection.connect(database_url, **{"autocommit": True, **options})
            stack.push_async_callback(conn.close)
            if pinned:
                await set_up(conn, PINNED)
            return conn

        yield opened


@pytest.fixture
async def conn(connect: Connect) -> AsyncConnection[TupleRow]:
    return await connect()


@pytest.fixture
async def harness(database_url: str, conn: AsyncConnection[TupleRow]) -> AsyncIterator[WorkerHarness]:
    """Runs jobs on the test's database; whatever the test does there, the invariants hold at its end."""
    async with (
        open_pool(database_url, name="test", size=10) as pool,
        open_pool(database_url, name="effects", size=10, reset_on_return=True) as effects,
    ):
        harness = WorkerHarness(database_url, conn, pool, effects)
        yield harness
        assert await harness.broken() == []
