"""A worker that is to stop finishes what it runs, or gives it back as it was."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from engine.model import Attempt, Completed, JobState
from ops.waiting import WAIT_SECONDS, until
from tests.support.database import counters, fetchone, trail
from tests.support.worker_harness import Worker, WorkerHarness, known, preset
from worker.consumer import Consumer
from worker.source import PostgresSource

LEASE = 0.6
LEASED = "SELECT 1 FROM outbox WHERE status = 'leased'"


async def test_drain_finishes_what_runs(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await harness.enqueue()
    async with harness.worker(work) as worker:
        await harness.row(LEASED)
        worker.stop.set()
        await until(lambda: known(worker.consumer._stopping.is_set()))
        waiting = await harness.enqueue()
        free.set()
        assert await worker.ended() == 0
    assert (await harness.view(job_id)).state is JobState.COMPLETED
    assert await counters(harness.conn, waiting) == (0, 0, 0)
    assert await fetchone(harness.conn, "SELECT count(*) FROM workers") == (0,)


async def test_the_lease_is_kept_through_a_drain_that_is_longer_than_it(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await harness.enqueue()
    async with harness.worker(work, lease=LEASE, drain=2 * WAIT_SECONDS) as worker:
        await harness.row(LEASED)
        worker.stop.set()
        (end,) = await fetchone(
            harness.conn, "SELECT clock_timestamp() + make_interval(secs => %s)", 3 * LEASE
        )
        await harness.row("SELECT 1 FROM workers WHERE expires_at > %s", end)
        free.set()
        assert await worker.ended() == 0
    assert (await harness.view(job_id)).state is JobState.COMPLETED
    assert await counters(harness.conn, job_id) == (1, 0, 0)
    assert codes == []


async def test_drain_releases_what_does_not_end_in_time_and_spends_nothing(harness: WorkerHarness) -> None:
    let_go = threading.Event()

    @preset("async")
    async def patient(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    @preset("plain")
    def busy(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT_SECONDS)

    @preset("effects")
    async def late(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Any) -> None:
            await conn.execute("SELECT pg_sleep(30)")

        return Completed(None, effects)

    ids = [await harness.enqueue(name) for name in ("async", "plain", "effects")]
    async with harness.worker(patient, busy, late, drain=0.1) as worker:
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        await harness.row("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        assert await worker.stopped() == 0
    for job_id in ids:
        assert await counters(harness.conn, job_id) == (1, 0, 0)
        assert (await harness.view(job_id)).state is JobState.PENDING
        assert (await trail(harness.conn, job_id))[-1][-1] == "shutdown"
    let_go.set()


async def test_a_fault_in_the_claiming_loop_still_drains(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    class Broken(PostgresSource):
        """Claims jobs of a preset that this worker does not have, too."""

        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            found = await super().claim(worker_id, limit)
            if any(attempt.job.preset == "unknown" for attempt in found):
                free.set()
            return found

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await harness.enqueue(priority=1)
    await harness.enqueue(preset="unknown")
    harness.limits |= {"p": 3, "unknown": 3}
    consumer = Consumer(
        harness.url,
        harness.pool,
        harness.effects,
        Broken(harness.url, ("p", "unknown")),
        {"p": work},
        slots=2,
        lease_seconds=2,
        drain_seconds=5,
    )
    with pytest.RaisesGroup(KeyError):
        await Worker(consumer).ended()
    assert (await harness.view(job_id)).state is JobState.COMPLETED
