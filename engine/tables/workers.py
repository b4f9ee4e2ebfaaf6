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
INSERT INTO workers (name, presets, slots, apart, lease_seconds, expires_at)
VALUES (%(name)s, %(presets)s, %(slots)s, %(apart)s, %(lease)s, clock_timestamp() + %(lease)s * interval '1 second')
RETURNING id
"""

# Reads nothing else: a lock on another table must not cost the lease.
BEAT: LiteralString = """
UPDATE workers SET expires_at = clock_timestamp() + %s * interval '1 second', throughput = %s::jsonb
WHERE id = %s
RETURNING id
"""

LEASED: LiteralString = """
SELECT job_id, attempt, cancel_requested FROM outbox WHERE worker_id = %s AND status = 'leased'
"""

DEREGISTER: LiteralString = "DELETE FROM workers WHERE id = %s"


class Registration(NamedTuple):
    """What a worker registers: it claims jobs of `presets` only, and runs up to `slots` attempts at once.

    It runs those of the presets `apart` in processes of their own.
    """

    name: str
    presets: Sequence[str]
    slots: int
    apart: Sequence[str] = ()


Leased = dict[tuple[UUID, int], bool]
"""(job_id, attempt) leased to a worker → whether the job's cancellation was requested."""


def register(conn: Connection[Any], worker: Registration, lease_seconds: float) -> int:
    """Insert a row and return its id. Ids are never reused."""
    lists = {"presets": list(worker.presets), "apart": list(worker.apart)}
    asked = worker._asdict() | lists | {"lease": lease_seconds}
    row = conn.execute(REGISTER, asked).fetchone()
    assert row is not None
    return int(row[0])


def beat(
    conn: Connection[Any], worker_id: int, lease_seconds: float, throughput: Mapping[str, float]
) -> bool:
    """Renew the lease. Returns False if the row is gone, and every lease with it.

    `throughput` is the number of attempts that end per second, by preset.
    """
    asked = [lease_seconds, orjson.dumps(throughput).decode(), worker_id]
    return conn.execute(BEAT, asked).fetchone() is not None


def leased(conn: Connection[Any], worker_id: int) -> Leased:
    """The attempts that are leased to the worker."""
    return {(job_id, attempt): cancel for job_id, attempt, cancel in conn.execute(LEASED, [worker_id])}


def deregister(conn: Connection[Any], worker_id: int) -> None:
    """Delete the row of a worker that holds no attempts any more."""
    conn.execute(DEREGISTER, [worker_id])
