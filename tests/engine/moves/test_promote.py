"""What is due is promoted by the database's clock, and what has been due longest first."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from engine.moves import promote
from engine.moves.enqueue import enqueue
from ops.waiting import until
from tests.conftest import Connect
from tests.support.database import Conn, fetchone, new, unsorted


async def test_a_job_is_due_by_the_clock_of_the_database(conn: Conn, connect: Connect) -> None:
    """In a transaction that clock stands still, while this process's clock runs on."""
    client = await connect()
    job = await enqueue(client, new(delay_seconds=60))
    async with conn.transaction():
        (now,) = await fetchone(conn, "SELECT now()")
        (due,) = await fetchone(
            client, "UPDATE outbox SET run_at = clock_timestamp() WHERE job_id = %s RETURNING run_at", job.id
        )
        await until(lambda: datetime.now(UTC) > due > now)
        assert await promote(conn) == 0
    assert await promote(conn) == 1


async def test_of_more_than_a_batch_those_that_have_been_due_longest_are_promoted_first(conn: Conn) -> None:
    ids = [(await enqueue(conn, new(delay_seconds=60))).id for _ in range(4)]
    due = [3, 1, 4, 2]
    for job_id, ago in zip(ids, due, strict=True):
        await conn.execute(
            "UPDATE outbox SET run_at = now() - make_interval(secs => %s) WHERE job_id = %s", [ago, job_id]
        )
    async with unsorted(conn):
        for _ in due:
            assert await promote(conn, 1) == 1
    (order,) = await fetchone(conn, "SELECT array_agg(job_id ORDER BY position) FROM outbox")
    assert order == [job_id for _, job_id in sorted(zip(due, ids, strict=True), reverse=True)]


async def test_a_due_job_that_is_locked_keeps_no_other_from_being_promoted(
    conn: Conn, connect: Connect
) -> None:
    holder = await connect()
    locked, _ = [(await enqueue(conn, new(delay_seconds=60))).id for _ in range(2)]
    await conn.execute("UPDATE outbox SET run_at = now()")
    async with asyncio.timeout(10), holder.transaction():
        await holder.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [locked])
        assert await promote(conn) == 1
        assert await fetchone(holder, "SELECT job_id FROM outbox WHERE status = 'waiting'") == (locked,)
    assert await promote(conn) == 1
