"""A PostgreSQL for the tests: one migrated template database for the session, a clone of it for each test."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg import AsyncConnection, Connection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

import migrations
from ops.local import local_postgres

Connect = Callable[..., Awaitable[AsyncConnection[TupleRow]]]

# At import, because test modules may read the environment as they are collected: what the developer's shell
# says of his own installation must not reach the tests.
GIVEN_URL = os.environ.get("OUTRIDER_DATABASE_URL")
for variable in [name for name in os.environ if name.startswith(("OUTRIDER_", "PUBSUB_"))]:
    del os.environ[variable]


class Databases:
    """Makes and drops databases beside the one `url` names, which itself is only connected to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._admin: Connection[TupleRow] = psycopg.connect(url, autocommit=True)
        self._dropper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drop-database")
        self._prefix = f"outrider_test_{secrets.token_hex(4)}"
        self._made = 0
        self._drops: list[Future[None]] = []

    def create(self, template: str = "template0") -> str:
        """A new database's name. The copy by files takes half the time of the default, through the WAL."""
        self._made += 1
        name = f"{self._prefix}_{self._made}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self._admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def url(self, name: str) -> str:
        options = {key: value for key, value in conninfo_to_dict(self._url).items() if value is not None}
        options.pop("dbname", None)
        return f"postgresql:///{name}?{urlencode(options, quote_via=quote)}"

    def drop(self, name: str) -> None:
        """In the background: it takes up to 0.1 s. `close` waits for it and raises its error."""
        self._drops.append(self._dropper.submit(self._drop, name))

    def _drop(self, name: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def close(self) -> None:
        self._admin.close()
        self._dropper.shutdown()
        for drop in self._drops:
            drop.result()


@contextmanager
def _own_server() -> Iterator[str]:
    """Nothing of it outlives the session, so it need not reach the disk."""
    with TemporaryDirectory(prefix="outrider-test-") as folder:
        Path(folder).chmod(0o755)  # run by root, the server is another user's process
        with local_postgres(Path(folder), {"fsync": "off", "full_page_writes": "off"}) as url:
            yield url


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with nullcontext(GIVEN_URL) if GIVEN_URL else _own_server() as url:
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
    databases.drop(name)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of the test's own, without a schema."""
    name = databases.create()
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture
def database_url(databases: Databases, template: str) -> Iterator[str]:
    """A database of the test's own, migrated."""
    name = databases.create(template)
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens autocommit connections to the test's database; they are closed at its end."""
    async with AsyncExitStack() as stack:

        async def opened(**options: Any) -> AsyncConnection[TupleRow]:
            conn = await AsyncConnection.connect(database_url, **{"autocommit": True, **options})
            stack.push_async_callback(conn.close)
            return conn

        yield opened


@pytest.fixture
async def conn(connect: Connect) -> AsyncConnection[TupleRow]:
    return await connect()
