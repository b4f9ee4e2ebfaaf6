"""Claims go by position, whatever the plan, and wait for no row that another session has locked."""

from __future__ import annotations

import asyncio
from uuid import UUID

from engine.moves import claim, claim_published
from engine.moves.enqueue import enqueue
from tests.conftest import Connect
from tests.support.database import LANES, Conn, new, unsorted, worker

PUBLISHED = (
    "UPDATE outbox SET status = 'published', published_at = now() - make_interval(secs => 1000 - position)"
)


async def queued(conn: Conn, count: int) -> list[UUID]:
    """Jobs in the order of their positions, stored in the opposite one."""
    ids = [(await enqueue(conn, new())).id for _ in range(count)]
    await conn.execute("UPDATE outbox SET position = 1000 - position")
    return ids[::-1]


async def test_a_lane_is_claimed_in_the_order_of_its_positions(conn: Conn) -> None:
    me, ids = await worker(conn), await queued(conn, 4)
    async with unsorted(conn):
        claimed = [(await claim(conn, me, LANES, 1))[0].job.id for _ in ids]
    assert claimed == ids


async def test_of_published_jobs_those_that_have_waited_longest_are_claimed_first(conn: Conn) -> None:
    me, ids = await worker(conn), await queued(conn, 4)
    await conn.execute(PUBLISHED)
    async with unsorted(conn):
        claimed = [(await claim_published(conn, me, ["p"], 1, age=0))[0].job.id for _ in ids]
    assert claimed == ids


async def test_a_published_job_that_is_locked_keeps_no_other_from_being_claimed(
    conn: Conn, connect: Connect
) -> None:
    holder, me = await connect(), await worker(conn)
    locked, free = await queued(conn, 2)
    await conn.execute(PUBLISHED)
    async with asyncio.timeout(10), holder.transaction():
        await holder.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [locked])
        assert [each.job.id for each in await claim_published(conn, me, ["p"], 2, age=0)] == [free]
    assert [each.job.id for each in await claim_published(conn, me, ["p"], 2, age=0)] == [locked]
