"""What the engine still owes, counted: jobs by preset and status, events by topic. Reads every outbox row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row


@dataclass(frozen=True, slots=True)
class Queue:
    """The unfinished jobs of one preset in one status, and since when the oldest of them is in it.

    Of waiting jobs it is the time when the first is due.
    """

    preset: str
    status: str
    jobs: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class Topic:
    """The events that have still to be published to one topic, and those set aside."""

    topic: str
    events: int
    quarantined: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event that the broker will never take, and what it said of it."""

    id: int
    topic: str
    message_id: str | None
    job_id: str | None
    reason: str | None
    quarantined_at: datetime


QUEUES: LiteralString = """
SELECT preset, status::text AS status, count(*) AS jobs,
       min(CASE status WHEN 'waiting' THEN run_at
                       WHEN 'ready' THEN ready_at
                       WHEN 'published' THEN published_at
                       ELSE claimed_at END) AS oldest
FROM outbox
GROUP BY preset, outbox.status
ORDER BY preset, outbox.status
"""

TOPICS: LiteralString = """
SELECT topic, count(*) FILTER (WHERE quarantined_at IS NULL) AS events, count(quarantined_at) AS quarantined,
       min(created_at) AS oldest
FROM outbox_events
GROUP BY topic
ORDER BY topic
"""

QUARANTINED: LiteralString = """
SELECT id, topic, attributes ->> 'message_id' AS message_id, attributes ->> 'job_id' AS job_id, reason, quarantined_at
FROM outbox_events
WHERE quarantined_at IS NOT NULL
ORDER BY quarantined_at DESC, id DESC
LIMIT %s
"""


async def queues(conn: AsyncConnection[Any]) -> list[Queue]:
    async with conn.cursor(row_factory=class_row(Queue)) as cursor:
        await cursor.execute(QUEUES)
        return await cursor.fetchall()


async def topics(conn: AsyncConnection[Any]) -> list[Topic]:
    async with conn.cursor(row_factory=class_row(Topic)) as cursor:
        await cursor.execute(TOPICS)
        return await cursor.fetchall()


async def quarantined(conn: AsyncConnection[Any], limit: int) -> list[Quarantined]:
    """The latest of them."""
    async with conn.cursor(row_factory=class_row(Quarantined)) as cursor:
        await cursor.execute(QUARANTINED, [limit])
        return await cursor.fetchall()
