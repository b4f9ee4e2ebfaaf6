"""Connections: a deadline ends a wait even when the server says nothing at all."""

from __future__ import annotations

import asyncio
import select
import time
from contextlib import AsyncExitStack

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from engine.errors import DatabaseUnavailable
from engine.storage.connections import PinnedConnection, borrow, connect, open_pool
from engine.storage.deadline import deadline
from ops.waiting import until
from tests.support.database import Conn, fetchone


def readable(conn: Conn) -> bool:
    """Whether the server has sent something that nobody has read."""
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


async def test_a_statement_past_its_deadline_is_given_up_at_once(database_url: str) -> None:
    conn = await connect(database_url, name="test")
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        async with asyncio.timeout(5), deadline(conn, 0.2):
            await conn.execute("SELECT pg_sleep(30)")
    assert time.monotonic() - began < 3
    assert conn.closed


async def test_a_black_holed_server_costs_no_more_than_the_deadline() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with asyncio.timeout(20), await asyncio.start_server(swallow, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DatabaseUnavailable):
            await connect(f"postgresql://u@127.0.0.1:{port}/d?connect_timeout=1", name="test")


async def test_an_error_of_the_statement_stays_what_it_is(conn: Conn) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with deadline(conn):
            await conn.execute("SELECT 1 / 0")
    assert await fetchone(conn, "SELECT 1") == (1,)


async def test_a_hot_connection_opens_again_after_it_broke(database_url: str) -> None:
    pinned = PinnedConnection(database_url, name="test")
    async with pinned.use() as mine:
        (pid,) = await fetchone(mine, "SELECT pg_backend_pid()")
    with pytest.raises(DatabaseUnavailable):
        async with pinned.use() as mine:
            await mine.execute("SELECT pg_terminate_backend(%s)", [pid])
    async with pinned.use() as mine:
        assert await fetchone(mine, "SHOW plan_cache_mode") == ("force_generic_plan",)
    await pinned.aclose()


async def test_a_hot_connection_that_was_ended_while_idle_costs_its_next_user_nothing(
    database_url: str, conn: Conn
) -> None:
    pinned = PinnedConnection(database_url, name="test")
    async with pinned.use() as mine:
        (pid,) = await fetchone(mine, "SELECT pg_backend_pid()")
    await conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    async with pinned.use() as mine:
        assert await fetchone(mine, "SELECT pg_backend_pid() <> %s", pid) == (True,)
    await pinned.aclose()


async def test_a_pool_whose_idle_connections_were_all_ended_lends_live_ones(
    database_url: str, conn: Conn
) -> None:
    """As after a restart of the server, a fail-over or idle_session_timeout. The pool's own check takes seconds."""
    size = 5
    async with asyncio.timeout(20), open_pool(database_url, name="test", size=size) as pool:
        async with AsyncExitStack() as stack:
            lent = [await stack.enter_async_context(borrow(pool)) for _ in range(size)]
            pids = [each.info.backend_pid for each in lent]
        await conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) pid", [pids])
        began = time.monotonic()
        async with borrow(pool) as mine:
            assert await fetchone(mine, "SELECT 1") == (1,)
        assert time.monotonic() - began < 3
        async with AsyncExitStack() as stack:
            for _ in range(size):
                mine = await stack.enter_async_context(borrow(pool))
                assert await fetchone(mine, "SELECT 1") == (1,)


async def test_a_message_of_the_server_is_no_hang_up(database_url: str, conn: Conn) -> None:
    """Servers and poolers may report a changed setting at any time. A notification arrives in the same way."""
    pinned = PinnedConnection(database_url, name="test")
    async with open_pool(database_url, name="test", size=1) as pool:
        async with pinned.use() as first, borrow(pool) as second:
            idle = [first, second]
            for each in idle:
                await each.execute("LISTEN gossip")
        await conn.execute("SELECT pg_reload_conf(), pg_notify('gossip', '')")
        await until(lambda: all(map(readable, idle)))
        for _ in range(2):
            async with pinned.use() as first, borrow(pool) as second:
                assert [first, second] == idle
                assert [await fetchone(each, "SELECT 1") for each in idle] == [(1,)] * 2
    await pinned.aclose()


async def test_a_connection_that_ends_while_it_is_lent_fails_its_borrower_and_no_other(
    database_url: str,
) -> None:
    async with asyncio.timeout(20), open_pool(database_url, name="test", size=1) as pool:
        with pytest.raises(DatabaseUnavailable):
            async with borrow(pool) as mine:
                await mine.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        async with borrow(pool) as mine:
            assert await fetchone(mine, "SELECT 1") == (1,)


async def test_a_server_that_cannot_be_reached_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailable):
        await connect("postgresql://u@127.0.0.1:1/d", name="test")
    async with open_pool("postgresql://u@127.0.0.1:1/d", name="test", size=1) as pool:
        with pytest.raises(DatabaseUnavailable):
            async with borrow(pool):
                raise AssertionError("a connection from nowhere")


def test_the_fixtures_use_sockets_so_that_no_port_is_taken(database_url: str) -> None:
    assert "host" in conninfo_to_dict(database_url)
