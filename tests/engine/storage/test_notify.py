"""Hints wake at once what would else find out by polling; losing one costs nothing but that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from engine.storage.listener import Listener
from engine.storage.notify import CANCEL, READY, Notifier
from tests.support.database import Conn, blocked

WAIT_SECONDS = 10.0
Hint = tuple[str, str]


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def listening(url: str, queue: asyncio.Queue[Hint], *, asks: bool = False) -> Coroutine[Any, Any, None]:
    return Listener(url, lambda *heard: queue.put_nowait(heard), asks=asks).run()


async def heard(queue: asyncio.Queue[Hint]) -> str:
    return (await hint(queue))[0]


async def hint(queue: asyncio.Queue[Hint]) -> Hint:
    async with asyncio.timeout(WAIT_SECONDS):
        return await queue.get()


async def test_a_poke_is_heard_and_pokes_of_a_moment_are_one(database_url: str) -> None:
    queue: asyncio.Queue[Hint] = asyncio.Queue()
    notifier = Notifier(database_url)
    async with running(listening(database_url, queue), notifier.run()):
        assert await heard(queue) == READY  # after connecting: hints may have been missed
        for _ in range(100):
            notifier.notify()
        assert await heard(queue) == READY
        notifier.notify()
        assert await heard(queue) == READY
        assert queue.qsize() <= 1


async def test_a_cancellation_is_told_apart(database_url: str, conn: Conn) -> None:
    queue: asyncio.Queue[Hint] = asyncio.Queue()
    async with running(listening(database_url, queue)):
        await heard(queue)
        await conn.execute("SELECT pg_notify('outrider_cancel', '')")
        assert await heard(queue) == CANCEL


async def test_both_ends_come_back_after_their_connections_were_terminated(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.notify.RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr("engine.storage.listener.RECONNECT_SECONDS", 0.05)
    queue: asyncio.Queue[Hint] = asyncio.Queue()
    notifier = Notifier(database_url)
    async with running(listening(database_url, queue), notifier.run()):
        await heard(queue)
        notifier.notify()
        await heard(queue)
        await conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name IN ('outrider listener', 'outrider notifier') AND datname = current_database()"
        )
        assert await heard(queue) == READY  # the listener is back, and says that it may have missed something
        async with asyncio.timeout(WAIT_SECONDS):
            while queue.empty():
                notifier.notify()
                await asyncio.sleep(0.01)


async def test_a_hint_names_the_presets_unless_it_is_for_all(database_url: str) -> None:
    queue: asyncio.Queue[Hint] = asyncio.Queue()
    notifier = Notifier(database_url)
    async with running(listening(database_url, queue), notifier.run()):
        await hint(queue)
        for notified, named in (
            ([{"b"}, {"a", "b"}], "a b"),
            ([{"a"}, ()], ""),
            ([{f"preset-{n}" for n in range(2000)}], ""),
            ([{"c"}], "c"),
        ):
            for presets in notified:
                notifier.notify(presets)
            assert await hint(queue) == (READY, named)


async def test_a_hint_that_comes_while_another_one_is_sent_is_sent_too(database_url: str, conn: Conn) -> None:
    await conn.execute(
        "CREATE FUNCTION public.pg_notify(channel text, payload text) RETURNS void LANGUAGE sql AS"
        " $$ SELECT pg_advisory_xact_lock(7); SELECT pg_catalog.pg_notify(channel, payload) $$"
    )
    await conn.execute("SELECT pg_advisory_lock(7)")
    queue: asyncio.Queue[Hint] = asyncio.Queue()
    notifier = Notifier(make_conninfo(database_url, options="-c search_path=public,pg_catalog"))
    async with running(listening(database_url, queue), notifier.run()):
        await hint(queue)
        notifier.notify({"first"})
        async with asyncio.timeout(WAIT_SECONDS):
            await blocked(conn)
        notifier.notify({"second"})
        await conn.execute("SELECT pg_advisory_unlock(7)")
        assert [await hint(queue), await hint(queue)] == [(READY, "first"), (READY, "second")]
