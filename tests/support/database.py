"""What several test modules need to set a scene."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import Attempt, Job, NewJob
from engine.moves import claim, lapse
from engine.moves.enqueue import enqueue
from engine.moves.lapse import Lapsed, look
from engine.storage import statements
from engine.tables.outbox import Lane

LANES = [Lane(preset, priority) for preset in ("p", "q") for priority in (1, 2, 3, 4)]

Conn = AsyncConnection[Any]


def new(**changes: Any) -> NewJob:
    return NewJob(**({"user_id": "ann", "preset": "p", "content": "text"} | changes))


async def worker(conn: Conn, *, seconds: float = 60, apart: Sequence[str] = ()) -> int:
    """A row in workers, alive for `seconds`. It runs the presets `apart` in processes of their own."""
    row = await fetchone(
        conn,
        "INSERT INTO workers (name, presets, slots, apart, expires_at)"
        " VALUES ('w', '{p}', 10, %s, clock_timestamp() + %s * interval '1 second') RETURNING id",
        list(apart),
        seconds,
    )
    return int(row[0])


async def started(conn: Conn, worker_id: int, **changes: Any) -> Attempt:
    """A job enqueued and claimed."""
    job = await enqueue(conn, new(**changes))
    [attempt] = [each for each in await claim(conn, worker_id, LANES, 100) if each.job.id == job.id]
    return attempt


async def lapse_dead(conn: Conn, **options: Any) -> list[Lapsed]:
    """Lapse every worker whose row is gone or has expired, as maintenance does once it has seen that for a lease."""
    row = await statements.fetchone(conn, "SELECT clock_timestamp()")
    assert row is not None
    [now] = row
    seen = await look(conn, 0)
    dead = [each for each in seen if each.expires_at is None or each.expires_at <= now]
    return await lapse(conn, dead, **options)


async def rewritten(conn: Conn, job_id: UUID, metadata: str) -> None:
    """Put `metadata` in the place of a job's own, as an older version may have stored what is refused now."""
    await conn.execute("UPDATE jobs SET metadata = %s::text::jsonb WHERE id = %s", [metadata, job_id])


async def suspected(conn: Conn, level: int, **changes: Any) -> Job:
    """A ready job under suspicion, as lapses leave it. Nobody sees it before."""
    async with conn.transaction():
        job = await enqueue(conn, new(**changes))
        for _ in range(level):
            dead = await worker(conn)
            await conn.execute(
                "UPDATE outbox SET status = 'leased', worker_id = %s, attempt = attempt + 1,"
                " version = version + 1, claimed_at = clock_timestamp() WHERE job_id = %s",
                [dead, job.id],
            )
            await conn.execute(
                "INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)"
                " SELECT job_id, version, 'PENDING', 'PROCESSING', attempt, 'claimed' FROM outbox WHERE job_id = %s",
                [job.id],
            )
            await conn.execute("DELETE FROM workers WHERE id = %s", [dead])
            [lapsed] = await lapse_dead(conn)
            assert lapsed.job_id == job.id
    return job


async def fetchone(conn: Conn, statement: str, *parameters: object) -> tuple[Any, ...]:
    row = await (await conn.execute(statement.encode(), parameters)).fetchone()
    assert row is not None
    return tuple(row)


async def trail(conn: Conn, job_id: UUID) -> list[tuple[Any, ...]]:
    """(seq, from, to, attempt, reason) of each audit row."""
    cursor = await conn.execute(
        "SELECT seq, from_state, to_state, attempt, reason FROM job_state_records WHERE job_id = %s ORDER BY seq",
        [job_id],
    )
    return [tuple(row) for row in await cursor.fetchall()]


async def counters(conn: Conn, job: Job | UUID) -> tuple[int, int, int]:
    """(attempt, errors, crashes) as they stand."""
    job_id = job if isinstance(job, UUID) else job.id
    attempt, errors, crashes = await fetchone(
        conn, "SELECT attempt, errors, crashes FROM job_status WHERE job_id = %s", job_id
    )
    return attempt, errors, crashes


@asynccontextmanager
async def unsorted(conn: Conn) -> AsyncIterator[None]:
    """Plans without indexes: an order that a statement does not ask for is not there by the grace of one."""
    kinds = ("indexscan", "indexonlyscan", "bitmapscan")
    for kind in kinds:
        await conn.execute(f"SET enable_{kind} = off".encode())
    try:
        yield
    finally:
        for kind in kinds:
            await conn.execute(f"RESET enable_{kind}".encode())


async def blocked(conn: Conn) -> None:
    """Wait until another session waits for a lock of this one."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    while await fetchone(conn, waiting) == (0,):  # noqa: ASYNC110 - PostgreSQL has no event for it
        await asyncio.sleep(0.005)


async def make_too_slow(conn: Conn, event: str, rows: int) -> None:
    """End each transaction whose `event` ("UPDATE ON outbox") has more than `rows` rows, as its deadline would."""
    await conn.execute(
        f"""
        CREATE FUNCTION too_slow() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            done int := coalesce(nullif(current_setting('test.done', true), ''), '0')::int + 1;
        BEGIN
            IF done > {rows} THEN
                RAISE query_canceled USING MESSAGE = 'canceling statement due to statement timeout';
            END IF;
            PERFORM set_config('test.done', done::text, true);
            RETURN NEW;
        END $$;
        CREATE TRIGGER too_slow BEFORE {event} FOR EACH ROW EXECUTE FUNCTION too_slow()
        """.encode()
    )
