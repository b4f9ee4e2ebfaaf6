"""The rows that a relay publishes, one source per topic: ready jobs as wake-ups, and result and dead-letter events.

Rows are reserved for RESERVED_SECONDS, then marked, released or refused. Every method raises DatabaseUnavailable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.moves import publish
from engine.pubsub.messages import Message, WakeUp
from engine.storage.batch_size import BatchSize
from engine.storage.connections import Connection, PinnedConnection
from engine.storage.deadline import STATEMENT_SECONDS
from engine.storage.scan_cursor import Marks, ScanCursor
from engine.tables import events
from engine.tables.events import Event, Topic
from engine.tables.outbox import lanes_of, ready_presets
from engine.telemetry.metrics import EVENTS_QUARANTINED, STAGE_SECONDS, WAKE_UPS_REFUSED
from relay.publishing.known_presets import MAX_LEARNT, KnownPresets

RESERVED_SECONDS: Final = 10.0
MARK_PAUSES: Final = (0.0, 0.5, 2.0)
"""Seconds to wait after each failed try to mark: in all less than a reservation."""
MAX_ROWS: Final = 500
MAX_BYTES: Final = 8_000_000
"""Size of one request at most; the service takes 10 MB and 1000 messages."""

log = structlog.get_logger()


class Item(Protocol):
    @property
    def message(self) -> Message: ...


ItemT = TypeVar("ItemT", bound=Item)


class OutboxSource(Protocol[ItemT]):
    """The unpublished rows of one topic."""

    async def take(self) -> list[ItemT]:
        """Reserve the next rows; empty when there are none."""

    async def sent(self, items: Sequence[ItemT]) -> None:
        """Mark the items, which have been published."""

    async def release(self, items: Sequence[ItemT]) -> None:
        """Release the items, which could not be published now."""

    async def refuse(self, item: ItemT, reason: str) -> None:
        """Set aside the item, which the broker will never take."""

    async def aclose(self) -> None: ...


class WakeUps:
    """Ready jobs. A worker may claim a job while its wake-up is in flight: then there is no row to mark."""

    def __init__(self, url: str, presets: Iterable[str]) -> None:
        self._connections = ConnectionPair(url, "jobs")
        self._cursor: ScanCursor[WakeUp] = ScanCursor()
        self._presets = KnownPresets(presets)
        self._published = STAGE_SECONDS.labels("publish").observe

    def hinted(self, presets: Iterable[str]) -> None:
        """Look for jobs of these presets too: a hint has named them."""
        self._presets.hinted(presets)

    async def take(self) -> list[WakeUp]:
        return await self._cursor.next(self._scan)

    async def _scan(self, marks: Marks | None) -> list[WakeUp]:
        async with self._connections.taking() as (conn, limit):
            if marks is None:
                self._presets.swept(await ready_presets(conn, after=self._presets.after, limit=MAX_LEARNT))
            lanes = lanes_of(self._presets.next(), marks or {})
            return await publish.reserve(conn, lanes, limit=limit, seconds=RESERVED_SECONDS)

    async def sent(self, items: Sequence[WakeUp]) -> None:
        now = time.monotonic()
        for item in items:
            self._published(now - item.ready)
        await self._mark(items)

    async def _mark(self, items: Sequence[WakeUp]) -> None:
        await self._connections.mark(lambda conn: publish.published(conn, items))

    async def release(self, items: Sequence[WakeUp]) -> None:
        await self._connections.mark(lambda conn: publish.release(conn, items))

    async def refuse(self, item: WakeUp, reason: str) -> None:
        """Mark the job as published all the same: workers look for jobs whose message does not come."""
        WAKE_UPS_REFUSED.inc()
        log.warning("wake_up.refused", job_id=item.job_id, preset=item.preset, reason=reason)
        await self._mark([item])

    async def aclose(self) -> None:
        await self._connections.aclose()


class Events:
    """Result or dead-letter events, deleted once they are published."""

    def __init__(self, url: str, topic: Topic) -> None:
        self._connections = ConnectionPair(url, topic)
        self._cursor: ScanCursor[Event] = ScanCursor()
        self._topic = topic
        self._quarantined = EVENTS_QUARANTINED.labels(topic).inc

    async def take(self) -> list[Event]:
        return await self._cursor.next(self._scan)

    async def _scan(self, marks: Marks | None) -> list[Event]:
        async with self._connections.taking() as (conn, limit):
            return await events.reserve(
                conn,
                self._topic,
                low=(marks or {}).get(self._topic, 0),
                limit=limit,
                max_bytes=MAX_BYTES,
                seconds=RESERVED_SECONDS,
            )

    async def sent(self, items: Sequence[Event]) -> None:
        await self._connections.mark(lambda conn: events.published(conn, items))

    async def release(self, items: Sequence[Event]) -> None:
        await self._connections.mark(lambda conn: events.release(conn, items))

    async def refuse(self, item: Event, reason: str) -> None:
        """Quarantine the event until an operator looks at it."""
        await self._connections.mark(lambda conn: events.quarantine(conn, item, reason))
        self._quarantined()
        named = {name: item.message.attributes.get(name) for name in ("message_id", "job_id")}
        log.error("event.quarantined", topic=self._topic, event_id=item.id, **named, reason=reason)

    async def aclose(self) -> None:
        await self._connections.aclose()


class ConnectionPair:
    """The two connections of one source: the next rows are taken while the previous ones are marked."""

    def __init__(self, url: str, name: str) -> None:
        self._taking = PinnedConnection(url, name=f"take {name}")
        self._marking = PinnedConnection(url, name=f"mark {name}")
        self._take_size = BatchSize(MAX_ROWS, STATEMENT_SECONDS)
        self._mark_size = BatchSize(MAX_ROWS, STATEMENT_SECONDS)
        self._marks = asyncio.Lock()

    @asynccontextmanager
    async def taking(self) -> AsyncIterator[tuple[Connection, int]]:
        """The connection, and how many rows to take: so many as can be marked, too, or they are published again."""
        async with self._taking.use() as conn:
            with self._take_size.run() as limit:
                yield conn, min(limit, self._mark_size.rows)

    async def mark(self, write: Callable[[Connection], Awaitable[object]]) -> None:
        """Run `write`, with retries: rows that are not marked are published a second time.

        After an outage of the database, a connection that was idle meanwhile fails once, at its first use.
        """
        async with self._marks:
            for seconds in MARK_PAUSES:
                try:
                    await self._write(write)
                except (DatabaseUnavailable, Error):
                    await asyncio.sleep(seconds)
                else:
                    return
            await self._write(write)

    async def _write(self, write: Callable[[Connection], Awaitable[object]]) -> None:
        async with self._marking.use() as conn:
            with self._mark_size.run():
                await write(conn)

    async def aclose(self) -> None:
        await self._taking.aclose()
        await self._marking.aclose()
