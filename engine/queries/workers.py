"""The registered workers: what each runs now, and when it was last heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

LIST: LiteralString = """
SELECT w.id, w.name, w.presets, w.slots,
       (SELECT count(*) FROM outbox o WHERE o.worker_id = w.id AND o.status = 'leased') AS busy,
       w.started_at, w.expires_at - w.lease_seconds * interval '1 second' AS beat_at,
       w.expires_at > clock_timestamp() AS live, w.throughput
FROM workers w ORDER BY w.id
"""


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """A worker's row. `live` is false once its lease has run out. `throughput`: attempts ended a second, by preset."""

    id: int
    name: str
    presets: Sequence[str]
    slots: int
    busy: int
    started_at: datetime
    beat_at: datetime
    live: bool
    throughput: Mapping[str, float] | None


async def registered(conn: AsyncConnection[Any]) -> list[RegisteredWorker]:
    """All workers that have a row, the oldest first: those that ended well have none."""
    async with conn.cursor(row_factory=class_row(RegisteredWorker)) as cursor:
        return await (await cursor.execute(LIST)).fetchall()
