"""The events that cannot be published: quarantined for good, or set back for another try."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.tables.events import IS_SET_BACK

_HELD: LiteralString = """
SELECT id, topic, attributes ->> 'message_id' AS message_id, attributes ->> 'job_id' AS job_id,
       octet_length(payload) AS bytes, reason,
       extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_seconds,
"""

QUARANTINED: LiteralString = (
    _HELD
    + """quarantined_at
FROM outbox_events
WHERE quarantined_at IS NOT NULL
ORDER BY quarantined_at DESC, id DESC
LIMIT %s
"""
)

SET_BACK: LiteralString = (
    _HELD
    + """failures
FROM outbox_events
WHERE quarantined_at IS NULL AND {set_back}
ORDER BY failures DESC, id
LIMIT %s
""".replace("{set_back}", IS_SET_BACK)
)


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """An event that is not published. `reason` is the broker's error, `bytes` the length of the payload."""

    id: int
    topic: str
    message_id: str | None
    job_id: str | None
    bytes: int
    age_seconds: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class Quarantined(HeldEvent):
    """An event that the broker will never accept."""

    quarantined_at: datetime


@dataclass(frozen=True, slots=True)
class SetBack(HeldEvent):
    """An event that failed alone, and is tried again after a pause. `failures` counts its tries while others left."""

    failures: int


async def quarantined(conn: AsyncConnection[Any], limit: int) -> list[Quarantined]:
    """The `limit` events that were quarantined last, latest first."""
    async with conn.cursor(row_factory=class_row(Quarantined)) as cursor:
        await cursor.execute(QUARANTINED, [limit])
        return await cursor.fetchall()


async def set_back(conn: AsyncConnection[Any], limit: int) -> list[SetBack]:
    """The `limit` events that failed alone most often."""
    async with conn.cursor(row_factory=class_row(SetBack)) as cursor:
        await cursor.execute(SET_BACK, [limit])
        return await cursor.fetchall()
