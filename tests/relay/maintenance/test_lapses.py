"""Maintenance lapses the attempts of workers that it has seen dead, and of nobody who may only have been held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from psycopg import errors
from structlog.testing import capture_logs

from engine.model import JobState
from engine.moves import claim, claim_suspects
from engine.tables.progress import Progress, report
from ops.waiting import until
from relay.maintenance.loop import Maintenance
from tests.support.database import LANES, Conn, counters, fetchone, started, worker
from tests.support.worker_harness import WorkerHarness

Maintained = Callable[[float], Maintenance]


@pytest.fixture
async def maintained(harness: WorkerHarness) -> AsyncIterator[Maintained]:
    made: list[Maintenance] = []

    def make(lease: float) -> Maintenance:
        maintenance = Maintenance(harness.url, harness.pool, lease_seconds=lease, on_ready=lambda: None)
        made.append(maintenance)
        return maintenance

    yield make
    for each in made:
        await each.aclose()


async def expired(conn: Conn) -> None:
    await conn.execute("UPDATE workers SET expires_at = clock_timestamp() - interval '1 hour'")


async def looks_until_a_lapse(maintenance: Maintenance, seconds: float = 10.0) -> float:
    """Look as the loop does until something lapses; how long that took."""
    began = time.monotonic()
    await until(maintenance._lapse, seconds)
    return time.monotonic() - began


async def test_nothing_lapses_before_it_has_been_seen_dead_for_a_lease(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    """After an outage every lease has expired, and those whose workers live will be renewed in a moment."""
    attempt = await started(harness.conn, await worker(harness.conn))
    await expired(harness.conn)
    assert await looks_until_a_lapse(maintained(1.0)) >= 1.0
    assert await counters(harness.conn, attempt.job) == (1, 0, 1)


async def test_a_lost_connection_begins_the_wait_for_the_first_lapse_anew(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    await started(harness.conn, await worker(harness.conn))
    await expired(harness.conn)
    maintenance = maintained(1.0)
    for _ in range(4):
        assert await maintenance._lapse() == 0
        await asyncio.sleep(0.2)
    await harness.conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'outrider lapse' AND datname = current_database()"
    )
    assert await looks_until_a_lapse(maintenance) >= 1.0


async def test_a_worker_that_beats_is_never_lapsed_wherever_the_clock_stands(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    attempt = await started(harness.conn, await worker(harness.conn))
    await harness.conn.execute("UPDATE workers SET lease_seconds = 0.3")
    await expired(harness.conn)
    maintenance, ends = maintained(0.3), time.monotonic() + 1.0
    while time.monotonic() < ends:
        assert await maintenance._lapse() == 0
        await harness.conn.execute("UPDATE workers SET expires_at = expires_at + interval '0.1 second'")
    assert await counters(harness.conn, attempt.job) == (1, 0, 0)


async def test_a_dead_lease_stands_no_longer_though_the_clock_has_gone_back(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    """A row that promises nine minutes more, by a clock that has jumped."""
    attempt = await started(harness.conn, await worker(harness.conn, seconds=540))
    await harness.conn.execute("UPDATE workers SET lease_seconds = 0.3")
    assert await looks_until_a_lapse(maintained(60.0)) < 5
    assert await counters(harness.conn, attempt.job) == (1, 0, 1)


async def test_a_lapse_that_fails_costs_no_worker_its_row_and_begins_the_wait_anew(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    await started(harness.conn, await worker(harness.conn))
    await expired(harness.conn)
    maintenance = maintained(1.0)
    await harness.conn.execute(
        "CREATE FUNCTION locked() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE lock_not_available; END $$;"
        "CREATE TRIGGER locked BEFORE UPDATE ON outbox EXECUTE FUNCTION locked()"
    )
    with pytest.raises(errors.LockNotAvailable):
        await looks_until_a_lapse(maintenance)
    await harness.conn.execute("DROP TRIGGER locked ON outbox")
    assert await fetchone(harness.conn, "SELECT count(*) FROM workers") == (1,)
    assert await looks_until_a_lapse(maintenance) >= 1.0


async def test_a_job_that_loses_its_worker_three_times_alone_fails_and_is_named(
    harness: WorkerHarness,
) -> None:
    job_id = await harness.enqueue()
    harness.limits["p"] = 3
    with capture_logs() as events:
        async with harness.maintenance(lease=0.05):
            for crash in (1, 2, 3):
                worker_id = await worker(harness.conn)
                await harness.row("SELECT 1 FROM outbox WHERE status = 'ready'")
                [attempt] = await (
                    claim(harness.conn, worker_id, LANES, 1)
                    if crash == 1
                    else claim_suspects(harness.conn, worker_id, ["p"], 1)
                )
                assert attempt.number == crash
                await report(harness.conn, [Progress(job_id, crash, 1, 0.5, "halfway")])
                await expired(harness.conn)
            [job] = await harness.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "WorkerLost")
    assert await counters(harness.conn, job_id) == (3, 0, 3)
    lapsed = [event for event in events if event["event"] == "leases.lapsed"][-1]
    assert (lapsed["jobs"], lapsed["failed"]) == (1, 1)
    assert lapsed["charged"] == [
        {"job_id": str(job_id), "attempt": 3, "worker": f"{worker_id} w", "progress": "halfway"}
    ]
