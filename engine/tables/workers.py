"""The workers table: one row for each worker process, the lease of all its attempts.

Synchronous, because the lease has a thread of its own (worker/lease.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import orjson
from psycopg import Connection

REGISTER: LiteralString = """
INSERT INTO workers (name, presets, slots, expires_at)
VALUES (%s, %s, %s, clock_timestamp() + %s * interval '1 second')
RETURNING id
"""

BEAT: LiteralString = """
WITH beat AS (
    UPDATE workers SET expires_at = clock_timestamp() + %s * interval '1 second', throughput = %s::jsonb
    WHERE id = %s
    RETURNING id
)
SELECT q.job_id, q.attempt, q.cancel_requested
FROM beat LEFT JOIN outbox q ON q.worker_id = beat.id AND q.status = 'leased'
"""

DEREGISTER: LiteralString = "DELETE FROM workers WHERE id = %s"


class Registration(NamedTuple):
    """What a worker says of itself: its presets are the only ones it claims."""

    name: str
    presets: Sequence[str]
    slots: int


Leased = dict[tuple[UUID, int], bool]
"""(job_id, attempt) leased to a worker → whether its cancellation was asked for."""


def register(conn: Connection[Any], worker: Registration, lease_seconds: float) -> int:
    """A new row; returns its id, which is never used again."""
    row = conn.execute(REGISTER, [worker.name, list(worker.presets), worker.slots, lease_seconds]).fetchone()
    assert row is not None
    return int(row[0])


def beat(
    conn: Connection[Any], worker_id: int, lease_seconds: float, throughput: Mapping[str, float]
) -> Leased | None:
    """Renew the lease, and give what is leased under it; None when the row is gone, and everything with it.

    `throughput` is how many attempts end a second, by preset.
    """
    asked = [lease_seconds, orjson.dumps(throughput).decode(), worker_id]
    rows = conn.execute(BEAT, asked).fetchall()
    if not rows:
        return None
    return {(job_id, attempt): cancel for job_id, attempt, cancel in rows if job_id is not None}


def deregister(conn: Connection[Any], worker_id: int) -> None:
    """Remove the row of a worker that holds nothing any more."""
    conn.execute(DEREGISTER, [worker_id])
