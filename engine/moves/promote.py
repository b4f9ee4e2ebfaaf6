"""Promote: maintenance makes waiting jobs ready once they are due."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import AsyncConnection

from engine.storage.statements import timed

PROMOTE: LiteralString = """
UPDATE outbox
SET status = 'ready', ready_at = clock_timestamp(), position = nextval('outbox_position')
WHERE job_id = ANY (ARRAY(
    SELECT job_id FROM outbox
    -- clock_timestamp() is volatile, and would read every waiting row.
    WHERE status = 'waiting' AND run_at <= now()
    ORDER BY run_at
    LIMIT %s
    FOR UPDATE SKIP LOCKED))
"""


@timed("promote")
async def promote(conn: AsyncConnection[Any], limit: int = 1000) -> int:
    """Make up to `limit` due jobs ready, each at the end of its lane. Returns how many."""
    return (await conn.execute(PROMOTE, [limit])).rowcount
