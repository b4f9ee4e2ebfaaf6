"""Sessions: whatever a database, a service file or a URL sets, each connection has the settings of this project."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import AsyncRawCursor, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from engine.errors import ConfigurationError, UnfitDatabase
from engine.storage.connections import (
    PinnedConnection,
    borrow,
    connect,
    connect_sync,
    open_pool,
    refuse_pooler,
)
from engine.storage.session import PINNED, SESSION
from ops.harness.postgres import Databases
from tests.support.database import Conn, fetchone
from tests.support.pooler import transaction_pooler

HOSTILE = {
    "client_encoding": "EUC_TW",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Tokyo",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "client_min_messages": "error",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "7s",
    "lock_timeout": "7s",
    "idle_session_timeout": "7s",
    "idle_in_transaction_session_timeout": "7s",
    "enable_indexscan": "off",
    "enable_nestloop": "off",
}
"""A database's own value for each setting that can be given one in a test, none of them ours."""

Show = Callable[[str], Any]
Opened = AbstractAsyncContextManager[Show]


@asynccontextmanager
async def single(url: str) -> AsyncIterator[Show]:
    async with await connect(url, name="test") as conn:
        yield lambda query: fetchone(conn, query)


@asynccontextmanager
async def pinned(url: str) -> AsyncIterator[Show]:
    mine = PinnedConnection(url, name="test")
    async with mine.use() as conn:
        yield lambda query: fetchone(conn, query)
    await mine.aclose()


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Show]:
    async with open_pool(url, name="test", size=1) as pool, borrow(pool) as conn:
        yield lambda query: fetchone(conn, query)


@asynccontextmanager
async def returned(url: str) -> AsyncIterator[Show]:
    """After an author had the connection, and set what could be set."""
    async with open_pool(url, name="test", size=1, reset_on_return=True) as pool:
        async with borrow(pool) as conn:
            for name in SESSION:
                await conn.execute(f"RESET {name}".encode())
            await conn.execute("RESET search_path")
            mine: Any = conn
            mine.row_factory = dict_row
            mine.cursor_factory = AsyncRawCursor
        async with borrow(pool) as conn:
            yield lambda query: fetchone(conn, query)


@asynccontextmanager
async def without_a_loop(url: str) -> AsyncIterator[Show]:
    async def show(query: str) -> Any:
        return conn.execute(query.encode()).fetchone()

    with connect_sync(url, name="test") as conn:
        yield show


WAYS = [single, pinned, pooled, returned, without_a_loop]


async def alter(conn: Conn, name: str, value: str) -> None:
    """Set it for every later connection to the database."""
    statement = sql.SQL("ALTER DATABASE {} SET {} TO {}")
    await conn.execute(
        statement.format(sql.Identifier(conn.info.dbname), sql.Identifier(name), sql.Literal(value))
    )


async def values(show: Show, names: Any) -> dict[str, str]:
    query = ", ".join(f"current_setting('{name}')" for name in names)
    return dict(zip(names, await show(f"SELECT {query}"), strict=True))


@pytest.mark.parametrize("way", WAYS)
async def test_no_connection_takes_its_settings_as_found(
    database_url: str, conn: Conn, way: Callable[[str], Opened]
) -> None:
    for name, value in HOSTILE.items():
        await alter(conn, name, value)
    async with way(database_url) as show:
        found = await values(show, SESSION)
        assert found == {**SESSION, "idle_in_transaction_session_timeout": "1min"}
        if way is pinned:
            assert await values(show, PINNED) == dict(PINNED)


@pytest.mark.parametrize("way", WAYS)
async def test_the_schema_of_the_environment_holds_on_every_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch, way: Callable[[str], Opened]
) -> None:
    monkeypatch.setenv("OUTRIDER_SCHEMA", "order")
    async with way(make_conninfo(database_url, options="-c search_path=elsewhere")) as show:
        assert await show("SHOW search_path") == ('"order", pg_temp',)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", ["service", "PGOPTIONS", "url", "database"])
async def test_without_it_the_path_that_the_connection_was_given_holds_on_every_connection(
    database_url: str,
    conn: Conn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    way: Callable[[str], Opened],
    given: str,
) -> None:
    await conn.execute("CREATE SCHEMA mine")
    url = database_url
    options = "-c search_path=mine"
    if given == "service":
        members = {**conninfo_to_dict(database_url), "options": options}
        lines = [f"{name}={value}" for name, value in members.items()]
        (tmp_path / "services").write_text("\n".join(["[here]", *lines]))
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        url = "service=here"
    elif given == "PGOPTIONS":
        monkeypatch.setenv("PGOPTIONS", options)
    elif given == "url":
        url = make_conninfo(database_url, options=options)
    else:
        await alter(conn, "search_path", "mine")
    async with way(url) as show:
        assert await show("SHOW search_path") == ("mine, pg_temp",)


@pytest.mark.parametrize("name", ["Upper", "pg_own", "a-b", "a" * 64, "1a"])
async def test_a_schema_that_is_no_plain_identifier_opens_no_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("OUTRIDER_SCHEMA", name)
    with pytest.raises(ConfigurationError, match="OUTRIDER_SCHEMA: "):
        await connect(database_url, name="test")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_in_another_encoding_is_refused_with_the_fix(
    databases: Databases, encoding: str
) -> None:
    name = databases.create(encoding=encoding)
    try:
        with pytest.raises(UnfitDatabase, match=f"encoding is {encoding}.*TEMPLATE template0"):
            await connect(databases.url(name), name="test")
        with pytest.raises(UnfitDatabase):
            connect_sync(databases.url(name), name="test")
    finally:
        databases.drop_later(name)


async def test_a_pooler_that_gives_sessions_away_is_refused_with_the_fix(database_url: str) -> None:
    await refuse_pooler(database_url)
    async with transaction_pooler(database_url) as url:
        with pytest.raises(UnfitDatabase, match="pool_mode=session"):
            await refuse_pooler(url)
