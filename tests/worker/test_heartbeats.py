"""What a heartbeat shows of a worker's attempts is as old as its sending, and is heeded at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from engine.model import JobState
from engine.moves import cancel, claim
from engine.tables.workers import Leased
from ops.waiting import WAIT_SECONDS, until
from tests.conftest import Connect
from tests.support.database import LANES, blocked, counters, fetchone
from tests.support.worker_harness import Worker, WorkerHarness, known, preset

LEASED = "SELECT 1 FROM outbox WHERE status = 'leased'"


def heard(worker: Worker) -> asyncio.Event:
    """Set once the worker has heeded a heartbeat from now on."""
    event = asyncio.Event()
    lease = worker.consumer._lease
    heed = lease._on_beat

    def on_beat(sent: float, leased: Leased | None) -> None:
        heed(sent, leased)
        event.set()

    lease._on_beat = on_beat
    return event


async def test_an_attempt_that_was_claimed_after_the_heartbeat_was_sent_runs_on(
    harness: WorkerHarness, connect: Connect
) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    holder = await connect()
    async with asyncio.timeout(2 * WAIT_SECONDS), harness.worker(work, lease=60) as worker:
        await harness.row("SELECT 1 FROM workers")
        beat = heard(worker)
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM workers FOR UPDATE")
            worker.consumer._lease.beat_now()
            await blocked(holder)
            job_id = await harness.enqueue()
            await until(lambda: known(bool(worker.consumer._slots.held)))
            beat.clear()
        await beat.wait()
        free.set()
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED
    assert await counters(harness.conn, job_id) == (1, 0, 0)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_an_attempt_that_was_taken_away_is_stopped_by_the_next_heartbeat(
    harness: WorkerHarness, kind: str
) -> None:
    stopped = threading.Event()

    async def on_the_loop(_job: Any, run: Any) -> None:
        if run.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

    def in_a_thread(_job: Any, run: Any) -> None:
        if run.attempt == 1 and run.cancelled.wait(2 * WAIT_SECONDS):
            stopped.set()

    job_id = await harness.enqueue()
    pipeline = preset()(on_the_loop if kind == "async" else in_a_thread)
    async with harness.worker(pipeline, lease=60) as worker:
        await harness.row(LEASED)
        await until(lambda: known(bool(worker.consumer._slots.held)))
        await harness.conn.execute(
            "WITH taken AS (UPDATE outbox SET status = 'ready', worker_id = NULL, version = version + 1)"
            " INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)"
            " VALUES (%s, 2, 'PROCESSING', 'PENDING', 1, 'taken')",
            [job_id],
        )
        worker.consumer._lease.beat_now()
        await until(lambda: known(stopped.is_set()))
        [job] = await harness.ended(job_id)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 2)


@pytest.mark.parametrize("publish_results", [False, True])
async def test_an_attempt_that_is_released_to_be_cancelled_has_a_result_to_be_published(
    harness: WorkerHarness, publish_results: bool
) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    await harness.enqueue()
    async with harness.worker(work, slots=1, lease=60, publish_results=publish_results) as worker:
        (worker_id,) = await harness.row("SELECT worker_id FROM outbox WHERE status = 'leased'")
        job_id = await harness.enqueue()
        assert await claim(harness.conn, worker_id, LANES, 1)
        await cancel(harness.conn, job_id, "ann")
        for _ in range(2):
            beat = heard(worker)
            worker.consumer._lease.beat_now()
            await beat.wait()
        [job] = await harness.ended(job_id)
        free.set()
    assert job.state is JobState.CANCELLED
    assert await fetchone(
        harness.conn,
        "SELECT count(*) FROM outbox_events WHERE attributes ->> 'job_id' = %s",
        str(job_id),
    ) == (int(publish_results),)
