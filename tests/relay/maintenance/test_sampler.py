"""What the sampler shows is what the database holds; and what has left it is shown no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from prometheus_client import REGISTRY
from psycopg.errors import UndefinedTable

from engine.moves.enqueue import enqueue
from engine.storage.throttle import COST
from engine.tables.outbox import OutboxStatus
from relay.maintenance.sampler import MAX_SAMPLE_SECONDS, Sampler
from tests.conftest import Connect
from tests.support.database import Conn, new, worker


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"outrider_{name}", labels)


def rows(status: str) -> float | None:
    return gauge("outbox_rows", preset="sampled", status=status)


@pytest.fixture
async def sampler(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sampler]:
    """It looks whenever it is asked to."""
    monkeypatch.setattr("engine.storage.throttle.COST", 0.0)
    made = Sampler(database_url, lambda _presets: None)
    yield made
    await made.aclose()


async def test_jobs_are_shown_by_preset_and_status_and_none_where_they_have_left(
    sampler: Sampler, conn: Conn
) -> None:
    await enqueue(conn, new(preset="sampled"))
    await sampler.sample()
    assert rows("ready") == 1
    await conn.execute("UPDATE outbox SET status = 'waiting', ready_at = NULL")
    await sampler.sample()
    assert (rows("ready"), rows("waiting"), rows("leased")) == (0, 1, 0)
    await conn.execute("DELETE FROM outbox")
    await sampler.sample()
    assert rows("waiting") == 0
    await sampler.sample()
    assert [rows(status) for status in OutboxStatus] == [None] * 4


async def test_the_presets_that_workers_run_are_shown_without_jobs_and_after_the_last_worker(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.throttle.COST", 0.0)
    told: list[Sequence[str]] = []
    sampler = Sampler(database_url, lambda presets: told.append(list(presets)))
    worker_id = await worker(conn)
    await conn.execute("UPDATE workers SET presets = '{sampled}'")
    for alive in (1, 0, 0):
        await sampler.sample()
        assert [rows(status) for status in OutboxStatus] == [0] * 4
        assert gauge("workers_alive", preset="sampled") == alive
        assert gauge("slots_alive", preset="sampled") == alive * 10
        assert time.time() - (gauge("outbox_oldest_due_timestamp_seconds", preset="sampled") or 0) < 10
        await conn.execute("DELETE FROM workers WHERE id = %s", [worker_id])
    assert told == [["sampled"], [], []]
    await sampler.aclose()


async def test_the_oldest_due_row_is_shown_as_a_time_and_as_now_when_there_is_none(
    sampler: Sampler, conn: Conn
) -> None:
    await enqueue(conn, new(preset="sampled"))
    await conn.execute("UPDATE outbox SET ready_at = now() - interval '100 s'")
    await sampler.sample()
    age = time.time() - (gauge("outbox_oldest_due_timestamp_seconds", preset="sampled") or 0)
    assert age == pytest.approx(100, abs=10)
    await conn.execute(
        "UPDATE outbox SET status = 'waiting', run_at = now() + interval '1 h', ready_at = NULL"
    )
    await sampler.sample()
    assert time.time() - (gauge("outbox_oldest_due_timestamp_seconds", preset="sampled") or 0) < 10
    await conn.execute("DELETE FROM outbox")
    await sampler.sample()
    assert gauge("outbox_oldest_due_timestamp_seconds", preset="sampled") is None
    assert time.time() - (gauge("sampled_timestamp_seconds") or 0) < 10


async def test_events_are_shown_by_topic_pending_or_set_aside(sampler: Sampler, conn: Conn) -> None:
    await conn.execute(
        "INSERT INTO outbox_events (topic, payload, attributes, created_at, quarantined_at)"
        " SELECT 'results', '', '{}', now() - n * interval '10 s', CASE WHEN n > 3 THEN now() END"
        " FROM generate_series(1, 5) n"
    )
    await sampler.sample()
    shown = {
        (topic, state): gauge("outbox_events", topic=topic, state=state)
        for topic in ("results", "dead-letters")
        for state in ("pending", "quarantined")
    }
    assert list(shown.values()) == [3, 2, 0, 0]
    oldest = [
        time.time() - (gauge("outbox_events_oldest_timestamp_seconds", topic=topic) or 0)
        for topic in ("results", "dead-letters")
    ]
    assert oldest == [pytest.approx(30, abs=8), pytest.approx(0, abs=8)]


async def test_a_preset_whose_last_worker_has_gone_has_none(sampler: Sampler, conn: Conn) -> None:
    await worker(conn)
    await sampler.sample()
    assert (gauge("workers_alive", preset="p"), gauge("slots_alive", preset="p")) == (1, 10)
    await conn.execute("UPDATE workers SET expires_at = now()")
    await sampler.sample()
    assert (gauge("workers_alive", preset="p"), gauge("slots_alive", preset="p")) == (0, 0)


async def test_an_open_transaction_shows_by_its_age_and_dead_rows_by_their_table(
    sampler: Sampler, connect: Connect, conn: Conn
) -> None:
    holder = await connect(autocommit=False)
    await holder.execute("SELECT txid_current()")
    await conn.execute("INSERT INTO idempotency_keys VALUES ('a', 'b', 'c', '', '[]', now())")
    await conn.execute("DELETE FROM idempotency_keys")
    await conn.execute("SELECT pg_stat_force_next_flush()")
    await conn.execute("SELECT 1")

    async with asyncio.timeout(10):
        while not gauge("database_oldest_transaction_seconds") or not gauge(
            "database_dead_tuples", table="idempotency_keys"
        ):
            await sampler.sample()
    assert (gauge("database_table_bytes", table="jobs") or 0) > 0
    await holder.rollback()
    await sampler.sample()
    assert gauge("database_oldest_transaction_seconds") == 0


async def test_a_snapshot_that_vacuum_must_keep_shows_by_the_transactions_since(
    sampler: Sampler, connect: Connect, conn: Conn
) -> None:
    holder = await connect(autocommit=False)
    await holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await holder.execute("SELECT 1 FROM jobs")
    for _ in range(20):
        await conn.execute("SELECT txid_current()")
    await sampler.sample()
    assert (gauge("database_oldest_xmin_transactions") or 0) >= 20
    await holder.rollback()


async def test_figures_that_are_too_old_are_shown_no_longer(
    sampler: Sampler, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue(conn, new(preset="sampled"))
    await sampler.sample()
    await conn.execute("ALTER TABLE outbox RENAME TO elsewhere")
    for stale, shown in ((60.0, 1), (0.0, None)):
        monkeypatch.setattr("relay.maintenance.sampler.STALE_SECONDS", stale)
        with pytest.raises(UndefinedTable):
            await sampler.sample()
        assert rows("ready") == shown
    assert gauge("outbox_oldest_due_timestamp_seconds", preset="sampled") is None
    await conn.execute("ALTER TABLE elsewhere RENAME TO outbox")
    await sampler.sample()
    assert rows("ready") == 1


async def test_a_sample_that_is_dear_is_not_taken_again_at_once(database_url: str) -> None:
    sampler = Sampler(database_url, lambda _presets: None)
    await sampler.sample()
    first = gauge("sampled_timestamp_seconds")
    sampler._throttle.ended(time.monotonic() - 60)
    await sampler.sample()
    assert gauge("sampled_timestamp_seconds") == first
    await sampler.aclose()


async def test_one_that_took_very_long_is_followed_within_half_a_minute(database_url: str) -> None:
    sampler = Sampler(database_url, lambda _presets: None)
    assert COST * MAX_SAMPLE_SECONDS <= 30
    sampler._throttle.ended(time.monotonic() - 3600)
    sampler._throttle._ended -= COST * MAX_SAMPLE_SECONDS
    assert sampler._throttle.due
    await sampler.aclose()
