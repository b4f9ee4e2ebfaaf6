"""What is due is claimed: by priority, without favour between presets, and whatever its place in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg import sql
from psycopg.errors import CheckViolation

from engine.model import Attempt, Reason
from engine.moves import Release, release
from engine.moves.enqueue import enqueue
from engine.storage import scan_cursor, throttle
from engine.storage.connections import PinnedConnection
from engine.storage.throttle import COST
from ops.waiting import until
from tests.conftest import Connect
from tests.support.clock import set_clock
from tests.support.database import Conn, new, rewritten, worker
from worker import source as source_module
from worker.source import MAX_SCAN_SECONDS, FallbackScan, PostgresSource

PRESETS = ("p", "q", "r")


@pytest.fixture
async def source(database_url: str) -> AsyncIterator[PostgresSource]:
    source = PostgresSource(database_url, PRESETS)
    yield source
    await source.aclose()


async def contents(source: PostgresSource, worker_id: int, limit: int) -> list[str]:
    return [each.job.content for each in await source.claim(worker_id, limit)]


async def all_of(source: PostgresSource, worker_id: int, count: int) -> list[Attempt]:
    """Claims until `count` have come; a sweep is not part of each claim."""
    found: list[Attempt] = []

    async def look() -> bool:
        found.extend(await source.claim(worker_id, 100))
        return len(found) >= count

    await until(look)
    return found


async def test_a_more_urgent_job_is_claimed_first(conn: Conn, source: PostgresSource) -> None:
    for priority in (4, 2, 3, 1):
        for preset in PRESETS:
            await enqueue(conn, new(preset=preset, priority=priority, content=str(priority)))
    worker_id = await worker(conn)
    claimed: list[str] = []
    for _ in range(4):
        claimed += await contents(source, worker_id, 3)
    assert claimed == ["1"] * 3 + ["2"] * 3 + ["3"] * 3 + ["4"] * 3


async def test_within_a_priority_no_preset_waits_for_another_s_backlog(
    conn: Conn, source: PostgresSource
) -> None:
    for preset in PRESETS:
        for _ in range(30):
            await enqueue(conn, new(preset=preset, content=preset))
    worker_id = await worker(conn)
    claimed: list[str] = []
    for _ in range(6):
        claimed += await contents(source, worker_id, 5)
    assert {preset: claimed.count(preset) for preset in PRESETS} == {"p": 10, "q": 10, "r": 10}


async def test_within_a_lane_the_first_ready_is_the_first_claimed(conn: Conn, source: PostgresSource) -> None:
    for number in range(20):
        await enqueue(conn, new(content=str(number)))
    worker_id = await worker(conn)
    claimed = [each for _ in range(5) for each in await contents(source, worker_id, 4)]
    assert sorted(claimed[:4], key=int) == ["0", "1", "2", "3"]
    assert sorted(claimed[-4:], key=int) == ["16", "17", "18", "19"]


async def test_a_job_committed_after_later_ones_were_claimed_is_found(
    connect: Connect, conn: Conn, source: PostgresSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.scan_cursor.SWEEP_SECONDS", 3600.0)
    late = await connect(autocommit=False)
    await enqueue(late, new(content="late"))
    await enqueue(conn, new(content="early"))
    worker_id = await worker(conn)
    assert await contents(source, worker_id, 10) == ["early"]
    await late.commit()
    [found] = await all_of(source, worker_id, 1)
    assert found.job.content == "late"


async def test_a_released_job_is_found_at_its_old_place_even_while_claims_come_back_full(
    conn: Conn, source: PostgresSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.scan_cursor.SWEEP_SECONDS", 0.1)
    worker_id = await worker(conn)
    await enqueue(conn, new(content="released"))
    [attempt] = await all_of(source, worker_id, 1)
    await release(conn, worker_id, [Release(*attempt.key, Reason.SHUTDOWN)])
    for _ in range(200):
        await enqueue(conn, new())
    seen: list[str] = []

    async def look() -> bool:
        seen.extend(await contents(source, worker_id, 1))
        await asyncio.sleep(0.01)
        return "released" in seen

    await until(look)
    assert len(seen) < 200


async def test_a_worker_without_a_live_row_claims_nothing(conn: Conn, source: PostgresSource) -> None:
    await enqueue(conn, new())
    assert await source.claim(4711, 10) == []
    assert await source.claim(await worker(conn, seconds=-1), 10) == []
    assert len(await source.claim(await worker(conn), 10)) == 1


async def test_presets_that_a_worker_does_not_have_are_left_to_others(
    conn: Conn, source: PostgresSource
) -> None:
    await enqueue(conn, new(preset="elsewhere"))
    assert await source.claim(await worker(conn), 10) == []


@pytest.mark.parametrize("stored", ['{"a": 1e131071}', '{"a": ' * 1100 + "1" + "}" * 1100])
async def test_metadata_that_cannot_be_read_is_said_of_its_job_only(
    conn: Conn, source: PostgresSource, stored: str
) -> None:
    await enqueue(conn, new(metadata={"a": 1}))
    await rewritten(conn, (await enqueue(conn, new())).id, stored)
    good, bad = sorted(await source.claim(await worker(conn), 10), key=_fault)
    assert (good.job.metadata, good.undecodable) == ({"a": 1}, None)
    assert bad.undecodable


def _fault(attempt: Any) -> str:
    return attempt.undecodable or ""


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"])
@pytest.mark.parametrize("column", ["jobs.created_at", "outbox.run_at"])
async def test_a_time_that_would_fail_every_claim_cannot_be_stored(
    conn: Conn, column: str, moment: str
) -> None:
    await enqueue(conn, new())
    table, name = column.split(".")
    update = sql.SQL("UPDATE {} SET {} = {}").format(sql.Identifier(table), sql.Identifier(name), moment)
    with pytest.raises(CheckViolation):
        await conn.execute(update)


async def test_stranded_jobs_are_looked_for_again_at_once_while_looks_come_back_full(
    database_url: str, conn: Conn
) -> None:
    aged = "UPDATE outbox SET ready_at = ready_at - interval '6 s'"
    link = PinnedConnection(database_url, name="claim")
    stranded, worker_id = FallbackScan(link, PRESETS), await worker(conn)
    for number in range(25):
        await enqueue(conn, new(preset=PRESETS[number % 3]))
    assert await stranded.claim(worker_id, 10) == []
    await conn.execute(aged)
    stranded = FallbackScan(link, PRESETS)
    assert [len(await stranded.claim(worker_id, 10)) for _ in range(3)] == [10, 10, 5]
    await enqueue(conn, new())
    await conn.execute(aged)
    assert await stranded.claim(worker_id, 10) == [], "the last one was not full"
    await until(lambda: stranded.claim(worker_id, 10))
    await link.aclose()


async def test_a_look_for_stranded_jobs_that_waited_for_a_lock_puts_the_next_off_for_what_it_can_have_cost(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = set_clock(monkeypatch, source_module)
    for module in (throttle, scan_cursor):
        monkeypatch.setattr(module, "time", clock)
    waits = [3600.0]

    class Held(FallbackScan):
        async def _published(self, worker_id: int, limit: int, astray: bool) -> list[Attempt]:
            clock.now += waits.pop() if waits else 0.0
            return await super()._published(worker_id, limit, astray)

    link = PinnedConnection(database_url, name="claim")
    stranded, worker_id = Held(link, PRESETS), await worker(conn)
    assert await stranded.claim(worker_id, 10) == []
    await enqueue(conn, new())
    await conn.execute("UPDATE outbox SET ready_at = ready_at - interval '6 s'")
    clock.now += COST * MAX_SCAN_SECONDS - 0.125
    assert await stranded.claim(worker_id, 10) == []
    clock.now += 0.125
    assert len(await stranded.claim(worker_id, 10)) == 1
    await link.aclose()
