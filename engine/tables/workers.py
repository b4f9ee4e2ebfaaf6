"""The workers table: one row for each worker process, the lease of all its attempts.

The functions are synchronous, because a thread of its own renews the lease (worker/lease.py).
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
    """What a worker registers: it claims jobs of `presets` only, and runs up to `slots` attempts at once."""

    name: str
    presets: Sequence[str]
    slots: int


Leased = dict[tuple[UUID, int], bool]
"""(job_id, attempt) leased to a worker → whether the job's cancellation was requested."""


def register(conn: Connection[Any], worker: Registration, lease_seconds: float) -> int:
    """Insert a row and return its id. Ids are never reused."""
    row = conn.execute(REGISTER, [worker.name, list(worker.presets), worker.slots, lease_seconds]).fetchone()
    assert row is not None
    return int(row[0])


def beat(
    conn: Connection[Any], worker_id: int, lease_seconds: float, throughput: Mapping[str, float]
) -> Leased | None:
    """Renew the lease and return the attempts under it. None if the row is gone, and every lease with it.

    `throughput` is the number of attempts that end per second, by preset.
    """
    asked = [lease_seconds, orjson.dumps(throughput).decode(), worker_id]
    rows = conn.execute(BEAT, asked).fetchall()
    if not rows:
        return None
    return {(job_id, attempt): cancel for job_id, attempt, cancel in rows if job_id is not None}


def deregister(conn: Connection[Any], worker_id: int) -> None:
    """Delete the row of a worker that holds no attempts any more."""
    conn.execute(DEREGISTER, [worker_id])
