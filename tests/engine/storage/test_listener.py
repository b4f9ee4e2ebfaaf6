"""An idle process asks for hints; it is then told by the commit that enqueues, until the hints are too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from engine import enqueue, enqueue_many
from engine.moves.enqueue import Submission, enqueue_group
from engine.storage import listener
from engine.storage.listener import Listener
from engine.storage.notify import CANCEL, READY
from engine.tables.idempotency import IdempotencyKey
from ops.waiting import until
from tests.conftest import Connect
from tests.engine.storage.test_notify import WAIT_SECONDS, Hint, hint, running
from tests.support.database import Conn, fetchone, new

Heard = asyncio.Queue[Hint]
WANTED = "SELECT coalesce(pg_sequence_last_value('hints_wanted_until') > extract(epoch FROM now()), false)"
BY_SQL = "SELECT outrider_enqueue('ann', 'p', 'text')"
BY_SQL_WITH_ID = "SELECT outrider_enqueue('ann', 'p', 'text', job_id => outrider_uuid7())"


async def ask(conn: Conn) -> tuple[Any, ...]:
    cursor = await conn.execute(listener.ASK, {"without": 5.0})
    row = await cursor.fetchone()
    assert row is not None
    return tuple(row)


async def wanted(conn: Conn, expected: bool) -> None:
    async def as_expected() -> bool | None:
        return await fetchone(conn, WANTED) == (expected,) or None

    await until(as_expected)


@pytest.fixture
async def heard(database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Heard]:
    """What a listener hears that asks for hints, without the looks by which it finds what came before."""
    monkeypatch.setattr(listener, "SOON", ())
    queue: Heard = asyncio.Queue()
    async with running(Listener(database_url, lambda *each: queue.put_nowait(each), asks=True).run()):
        assert await hint(queue) == (READY, "")
        await wanted(conn, True)
        yield queue


async def silence(conn: Conn, queue: Heard) -> None:
    """Nothing has been heard before this."""
    await conn.execute("SELECT pg_notify('outrider_ready', 'last')")
    assert await hint(queue) == (READY, "last")


async def test_library_and_sql_tell_an_idle_process_by_their_commit(
    heard: Heard, conn: Conn, connect: Connect, database_url: str
) -> None:
    theirs = await connect(autocommit=False)
    for call in (
        lambda: enqueue(theirs, new()),
        lambda: enqueue_many(theirs, [new(), new()]),
        lambda: theirs.execute(BY_SQL),
        lambda: theirs.execute(BY_SQL_WITH_ID),
    ):
        await call()
        await silence(conn, heard)
        await theirs.commit()
        assert await hint(heard) == (READY, "p")
    with psycopg.connect(database_url) as synchronous:
        enqueue(synchronous, new(preset="q"))
    assert await hint(heard) == (READY, "q")


async def test_one_call_sends_one_hint_that_names_each_preset_once(heard: Heard, conn: Conn) -> None:
    await enqueue_many(conn, [new(preset=preset) for preset in ("a", "b", "a")] * 100)
    assert sorted((await hint(heard))[1].split()) == ["a", "b"]
    await silence(conn, heard)
    async with conn.transaction():
        for _ in range(10):
            await enqueue(conn, new())
    assert await hint(heard) == (READY, "p")
    await silence(conn, heard)


async def test_presets_that_no_hint_can_name_wake_everybody(heard: Heard, conn: Conn) -> None:
    await enqueue_many(conn, [new(preset=f"preset-{no}") for no in range(1000)])
    assert await hint(heard) == (READY, "")


async def test_what_is_due_later_or_was_enqueued_before_tells_nobody(heard: Heard, conn: Conn) -> None:
    await enqueue(conn, new(delay_seconds=3600))
    await enqueue_many(conn, [new(delay_seconds=3600)])
    await silence(conn, heard)
    job = await enqueue(conn, new())
    assert await hint(heard) == (READY, "p")
    assert (await enqueue(conn, new(id=job.id))).replayed
    await silence(conn, heard)


@pytest.mark.parametrize("until", ["0", "extract(epoch FROM now())::bigint - 1"])
async def test_nobody_is_told_while_nobody_asks(database_url: str, conn: Conn, until: str) -> None:
    queue: Heard = asyncio.Queue()
    async with running(Listener(database_url, lambda *each: queue.put_nowait(each), asks=False).run()):
        await hint(queue)
        await conn.execute(f"SELECT setval('hints_wanted_until', {until})".encode())
        await enqueue(conn, new())
        await silence(conn, queue)
        assert await fetchone(conn, WANTED) == (False,)


async def test_hints_that_are_too_many_are_replaced_by_looks(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MANY", 5)
    monkeypatch.setattr(listener, "WITHOUT_SECONDS", 2.0)
    queue: Heard = asyncio.Queue()
    listening = Listener(database_url, lambda *each: queue.put_nowait(each), asks=True)
    async with running(listening.run()):
        await wanted(conn, True)
        for _ in range(6):
            await enqueue(conn, new())
        await wanted(conn, False)
        while not queue.empty():
            queue.get_nowait()
        assert await hint(queue) == await hint(queue) == (READY, "")
        await wanted(conn, True)


async def test_a_transaction_that_enqueued_before_anybody_asked_is_found_by_looks_after_its_commit(
    database_url: str, conn: Conn, connect: Connect
) -> None:
    theirs = await connect(autocommit=False)
    await enqueue(theirs, new())
    queue: Heard = asyncio.Queue()
    seen: list[Any] = []

    async def look() -> None:
        """As a worker: each hint makes it look for ready jobs."""
        while not seen:
            await hint(queue)
            seen.extend(await (await conn.execute("SELECT job_id FROM outbox")).fetchall())

    async with running(Listener(database_url, lambda *each: queue.put_nowait(each), asks=True).run()):
        looking = asyncio.create_task(look())
        assert await hint(queue) == (READY, "")
        await theirs.commit()
        async with asyncio.timeout(WAIT_SECONDS):
            await looking
    assert len(seen) == 1


async def test_who_asks_again_soon_writes_nothing(conn: Conn) -> None:
    """However many processes ask, the number in the database is written every 15 seconds at the most."""
    [asked, given_up, until] = await ask(conn)
    assert not asked
    assert not given_up
    assert await fetchone(conn, "SELECT last_value FROM hints_wanted_until") == (until,)
    assert await ask(conn) == (True, False, None)


async def test_one_process_that_gives_up_does_so_for_all(conn: Conn) -> None:
    """Otherwise each of many processes asks anew and gives up in its turn, and commits always wait for each other."""
    await ask(conn)
    await conn.execute(listener.UNASK)
    assert await ask(conn) == (False, True, None)
    assert await fetchone(conn, WANTED) == (False,)
    await conn.execute("SELECT setval('hints_wanted_until', last_value - 6) FROM hints_wanted_until")
    [asked, given_up, until] = await ask(conn)
    assert not asked
    assert not given_up
    assert until is not None


async def test_a_cancellation_amid_too_many_hints_is_heard(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MANY", 5)
    queue: Heard = asyncio.Queue()
    async with running(Listener(database_url, lambda *each: queue.put_nowait(each), asks=True).run()):
        await wanted(conn, True)
        await conn.execute(
            "SELECT pg_notify('outrider_ready', no::text) FROM generate_series(1, 50) no"
            " UNION ALL SELECT pg_notify('outrider_cancel', '')"
        )
        while (await hint(queue))[0] != CANCEL:
            pass


async def test_a_group_of_submissions_sends_one_hint_of_what_is_due(heard: Heard, conn: Conn) -> None:
    key = IdempotencyKey("ann", "/pipeline/run", "k", b"f" * 32)
    later = new(preset="later", delay_seconds=60)
    await enqueue_group(conn, [Submission((new(), new(preset="q"), later)), Submission((new(),), key)])
    assert sorted((await hint(heard))[1].split()) == ["p", "q"]
    await enqueue_group(conn, [Submission((later,))])
    await enqueue_group(conn, [Submission((new(),), key)])
    await silence(conn, heard)
