"""What becomes of the jobs of dead workers, as maintenance finds them: no row of another session holds it up."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from engine.model import MAX_CRASHES, Attempt, JobState, Reason
from engine.moves import Release, cancel, claim, claim_suspects, release
from tests.conftest import Connect
from tests.support.database import LANES, Conn, blocked, counters, fetchone, started, trail, worker
from tests.support.worker_harness import WorkerHarness, attempts

LEASE = 0.05
READY = "SELECT 1 FROM outbox WHERE job_id = %s AND status = 'ready'"

HELD = """
CREATE FUNCTION held() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF current_query() LIKE '%FOR UPDATE%' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
    RETURN true;
END $$;
ALTER TABLE outbox RENAME TO outbox_rows;
CREATE VIEW outbox AS SELECT * FROM outbox_rows WHERE held();
SELECT pg_advisory_lock(1)
"""
"""Statements that lock rows of the outbox wait, once they have read them, until this session unlocks."""


async def claimed(harness: WorkerHarness, job_id: UUID) -> Attempt:
    """The job's next attempt, by a worker of its own. A job that has lost a worker is a suspect."""
    await harness.row(READY, job_id)
    mine = await worker(harness.conn)
    [attempt] = await claim(harness.conn, mine, LANES, 1) or await claim_suspects(
        harness.conn, mine, ["p"], 1
    )
    assert attempt.job.id == job_id
    return attempt


async def kill(harness: WorkerHarness, *lost: Attempt) -> None:
    """Let the leases of these attempts run out."""
    dead = [attempt.worker_id for attempt in lost]
    await harness.conn.execute("UPDATE workers SET expires_at = now() WHERE id = ANY (%s)", [dead])


async def status(conn: Conn, attempt: Attempt) -> str:
    (found,) = await fetchone(conn, "SELECT status FROM outbox WHERE job_id = %s", attempt.job.id)
    return str(found)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"outrider_{name}_total", {"preset": "p"} | labels) or 0.0


async def test_a_row_that_is_locked_holds_up_no_lapse_but_its_own(
    harness: WorkerHarness, connect: Connect
) -> None:
    holder = await connect()
    held, free = [await claimed(harness, await harness.enqueue()) for _ in range(2)]
    async with asyncio.timeout(30), harness.maintenance(LEASE):
        async with holder.transaction():
            await holder.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [held.job.id])
            await kill(harness, held, free)
            await harness.row(READY, free.job.id)
            assert await status(holder, held) == "leased"
        await harness.row(READY, held.job.id)


async def test_a_job_that_changes_hands_under_a_lapse_is_left_to_its_new_worker(
    harness: WorkerHarness,
) -> None:
    """The new worker registers after the lapse has begun, so the lapse's snapshot does not show it."""
    conn = harness.conn
    moving, lost = [await claimed(harness, await harness.enqueue()) for _ in range(2)]
    await conn.execute(HELD.encode())
    await kill(harness, moving, lost)
    async with asyncio.timeout(30), harness.maintenance(LEASE):
        await blocked(conn)
        await release(conn, moving.worker_id, [Release(*moving.key, Reason.SHUTDOWN)])
        await claimed(harness, moving.job.id)
        await conn.execute("SELECT pg_advisory_unlock(1)")
        await harness.row(READY, lost.job.id)
    assert await status(conn, moving) == "leased"
    assert await counters(conn, moving.job) == (2, 0, 0)


async def test_a_job_that_is_to_stop_is_cancelled_by_its_last_crash_too(harness: WorkerHarness) -> None:
    job_id = await harness.enqueue()
    async with harness.maintenance(LEASE):
        for _ in range(MAX_CRASHES - 1):
            await kill(harness, await claimed(harness, job_id))
        last = await claimed(harness, job_id)
        assert await cancel(harness.conn, job_id, "ann") is JobState.PROCESSING
        await kill(harness, last)
        [job] = await harness.ended(job_id)
    assert job.state is JobState.CANCELLED
    assert (await trail(harness.conn, job_id))[-1][1:4] == ("PROCESSING", "CANCELLED", MAX_CRASHES)


@pytest.mark.parametrize("published", [False, True])
async def test_a_job_that_lost_its_last_worker_is_a_dead_letter_like_any_other(
    harness: WorkerHarness, published: bool
) -> None:
    def counts() -> tuple[float, ...]:
        return (
            attempts("p", "lost"),
            counted("jobs_finished", state="FAILED"),
            counted("dead_letters", reason="lapsed"),
        )

    before = counts()
    job_id = await harness.enqueue()
    async with harness.maintenance(LEASE, publish_results=published):
        for _ in range(MAX_CRASHES):
            await kill(harness, await claimed(harness, job_id))
        [job] = await harness.ended(job_id)
    assert job.state is JobState.FAILED
    assert [after - then for after, then in zip(counts(), before, strict=True)] == [MAX_CRASHES, 1, 1]
    (topics,) = await fetchone(harness.conn, "SELECT array_agg(topic ORDER BY topic) FROM outbox_events")
    assert topics == (["dead-letters", "results"] if published else None)


async def test_workers_are_woken_for_the_jobs_of_dead_ones(harness: WorkerHarness) -> None:
    woken = asyncio.Event()
    lost = await started(harness.conn, await worker(harness.conn))
    async with asyncio.timeout(30), harness.maintenance(LEASE, on_ready=woken.set):
        await kill(harness, lost)
        await woken.wait()
    assert await status(harness.conn, lost) == "ready"
