"""Promote: maintenance makes jobs ready that have become due."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import AsyncConnection

from engine.storage.statements import timed

PROMOTE: LiteralString = """
UPDATE outbox
SET status = 'ready', ready_at = clock_timestamp(), position = nextval('outbox_position')
WHERE job_id = ANY (ARRAY(
    SELECT job_id FROM outbox
    WHERE status = 'waiting' AND run_at <= now()  -- a volatile clock_timestamp() would read every waiting row
    ORDER BY run_at
    LIMIT %s
    FOR UPDATE SKIP LOCKED))
"""


@timed("promote")
async def promote(conn: AsyncConnection[Any], limit: int = 1000) -> int:
    """Make up to `limit` jobs that are due ready, each at the end of its queue. Returns how many."""
    return (await conn.execute(PROMOTE, [limit])).rowcount
