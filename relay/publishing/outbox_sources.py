"""The rows that a relay publishes, one source per topic: ready jobs as wake-ups, and result and dead-letter events.

Rows are reserved, then marked, released, set back or refused. Every method raises DatabaseUnavailable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.moves import publish
from engine.pubsub.messages import WAKE_UP_BYTES, Message, WakeUp
from engine.storage.batch_size import BatchSize
from engine.storage.connections import Connection, PinnedConnection
from engine.storage.deadline import STATEMENT_SECONDS
from engine.storage.scan_cursor import Marks, ScanCursor
from engine.tables import events
from engine.tables.events import Event, Topic
from engine.tables.outbox import lanes_of, ready_presets
from engine.telemetry.metrics import EVENTS_QUARANTINED, EVENTS_SET_BACK, STAGE_SECONDS, WAKE_UPS_REFUSED
from relay.publishing.known_presets import MAX_LEARNT, KnownPresets
from relay.publishing.request_size import FLOOR_BYTES_PER_SECOND, MAX_ROWS, Room

RESERVED_SECONDS: Final = 10.0
"""Of an empty request: twice what it may take, so that there is time to mark. Bytes add to both alike."""
MARK_PAUSES: Final = (0.0, 0.5, 2.0)
"""Seconds to wait after each failed try to mark."""
MAX_FAILURES: Final = 6
"""So often an event fails alone, while others are taken, before it is quarantined: for half a minute."""
MAX_PAUSE_SECONDS: Final = 600.0
BREAKER_PAUSES: Final = 3.0
MAX_BREAKER_SECONDS: Final = 15.0
"""How long a row waits that failed when nothing else succeeded either: for three pauses of the breaker, so that the
next probes try other rows."""
WAKE_UP_PAUSE_SECONDS: Final = 30.0
"""How long a wake-up waits that alone could not be sent. The fallback scan has its job long before."""

log = structlog.get_logger()


class Item(Protocol):
    @property
    def message(self) -> Message: ...

    @property
    def weight(self) -> int: ...


ItemT = TypeVar("ItemT", bound=Item)


class Cause(Enum):
    """Why a row is set back."""

    TRANSIENT = "transient"
    """The row alone was too large for the line, or failed in a way that should pass. It is tried again and again."""
    GUILTY = "guilty"
    """The row failed alone, while others were taken."""
    UNKNOWN = "unknown"
    """The row failed alone, and nothing else was taken either: another row is the next probe."""


class OutboxSource(Protocol[ItemT]):
    """The unpublished rows of one topic."""

    async def take(self, room: Room) -> list[ItemT]:
        """Reserve the next rows, as many as there is room for; empty when there are none."""

    async def sent(self, items: Sequence[ItemT]) -> None:
        """Mark the items, which have been published."""

    async def release(self, items: Sequence[ItemT]) -> None:
        """Release the items, which could not be published now."""

    async def set_back(self, item: ItemT, reason: str, cause: Cause, pause: float) -> None:
        """Let the item, which has failed alone, wait behind the others. The breaker now pauses for `pause` seconds."""

    async def refuse(self, item: ItemT, reason: str) -> None:
        """Set aside the item, which the broker will never take."""

    async def aclose(self) -> None: ...


class WakeUps:
    """Ready jobs. A worker may claim a job while its wake-up is in flight: then there is no row to mark."""

    def __init__(self, url: str) -> None:
        self._connections = ConnectionPair(url, "jobs")
        self._cursor: ScanCursor[WakeUp] = ScanCursor()
        self._presets = KnownPresets()
        self._published = STAGE_SECONDS.labels("publish").observe

    def served(self, presets: Iterable[str]) -> None:
        """Look for jobs of these presets: workers run them."""
        self._presets.served(presets)

    def hinted(self, presets: Iterable[str]) -> None:
        """Look for jobs of these presets too: a hint has named them."""
        self._presets.hinted(presets)

    async def take(self, room: Room) -> list[WakeUp]:
        following = self._cursor.turn if room.lone else self._cursor.next
        return await following(partial(self._scan, room))

    async def _scan(self, room: Room, marks: Marks | None) -> list[WakeUp]:
        async with self._connections.taking() as (conn, limit):
            if marks is None:
                self._presets.swept(await ready_presets(conn, after=self._presets.after, limit=MAX_LEARNT))
            lanes = lanes_of(self._presets.next(), marks or {})
            return await publish.reserve(
                conn,
                lanes,
                limit=min(limit, room.rows, max(1, room.bytes // WAKE_UP_BYTES)),
                seconds=reserved_seconds(room.ahead),
                row_seconds=WAKE_UP_BYTES / FLOOR_BYTES_PER_SECOND,
            )

    async def sent(self, items: Sequence[WakeUp]) -> None:
        now = time.monotonic()
        for item in items:
            self._published(now - item.ready)
        await self._mark(items)

    async def _mark(self, items: Sequence[WakeUp]) -> None:
        await self._connections.mark(lambda conn: publish.published(conn, items))

    async def release(self, items: Sequence[WakeUp]) -> None:
        await self._connections.mark(lambda conn: publish.release(conn, items))

    async def set_back(self, item: WakeUp, reason: str, cause: Cause, pause: float) -> None:
        """As good as refused, if the job's wake-up is to blame. Else workers find the job soon, and others go first."""
        if cause is Cause.GUILTY:
            await self.refuse(item, reason)
            return
        seconds = WAKE_UP_PAUSE_SECONDS if cause is Cause.TRANSIENT else after_failure(0, cause, pause)[1]
        await self._connections.mark(lambda conn: publish.release(conn, [item], seconds=seconds))

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
        self._set_back = EVENTS_SET_BACK.labels(topic).inc

    async def take(self, room: Room) -> list[Event]:
        following = self._cursor.turn if room.lone else self._cursor.next
        found = await following(partial(self._scan, room))
        for event in found:
            if event.size > events.MAX_BYTES:
                await self.refuse(event, f"{event.size} bytes, more than Pub/Sub takes")
        return [event for event in found if event.size <= events.MAX_BYTES]

    async def _scan(self, room: Room, marks: Marks | None) -> list[Event]:
        async with self._connections.taking() as (conn, limit):
            return await events.reserve(
                conn,
                self._topic,
                low=(marks or {}).get(self._topic, 0),
                limit=min(limit, room.rows),
                max_bytes=room.bytes,
                max_row_bytes=room.row_bytes,
                seconds=reserved_seconds(room.ahead),
                bytes_per_second=FLOOR_BYTES_PER_SECOND,
            )

    async def sent(self, items: Sequence[Event]) -> None:
        await self._connections.mark(lambda conn: events.published(conn, items))

    async def release(self, items: Sequence[Event]) -> None:
        await self._connections.mark(lambda conn: events.release(conn, items))

    async def set_back(self, item: Event, reason: str, cause: Cause, pause: float) -> None:
        failures, seconds = after_failure(item.failures, cause, pause)
        if cause is Cause.GUILTY and failures >= MAX_FAILURES:
            await self.refuse(item, reason)
            return
        await self._connections.mark(
            lambda conn: events.set_back(conn, item, seconds=seconds, failures=failures, reason=reason)
        )
        if cause is not Cause.UNKNOWN:
            self._set_back()
            log.warning(
                "event.set_back",
                topic=self._topic,
                event_id=item.id,
                bytes=item.size,
                failures=failures,
                pause_seconds=seconds,
                reason=reason,
            )

    async def refuse(self, item: Event, reason: str) -> None:
        """Quarantine the event until an operator looks at it."""
        ours: list[bool] = []

        async def quarantine(conn: Connection) -> None:
            ours.append(await events.quarantine(conn, item, reason))

        await self._connections.mark(quarantine)
        if not any(ours):
            return  # the reservation has ended: another relay decides
        self._quarantined()
        attributes = item.message.attributes if isinstance(item.message.attributes, Mapping) else {}
        named = {name: attributes.get(name) for name in ("message_id", "job_id")}
        log.error("event.quarantined", topic=self._topic, event_id=item.id, **named, reason=reason)

    async def aclose(self) -> None:
        await self._connections.aclose()


def reserved_seconds(ahead: int) -> float:
    """How long an empty request is reserved, if `ahead` bytes of its topic are on their way."""
    return RESERVED_SECONDS + ahead / FLOOR_BYTES_PER_SECOND


def after_failure(failures: int, cause: Cause, pause: float = 0.0) -> tuple[int, float]:
    """The failures to count, and the seconds to wait: twice as long after each. An outage counts against nobody."""
    if cause is Cause.UNKNOWN:
        return failures, min(BREAKER_PAUSES * pause, MAX_BREAKER_SECONDS)
    return min(failures + 1, 1000), min(2.0 ** min(failures, 10), MAX_PAUSE_SECONDS)


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
                yield conn, min(limit, self._mark_size.current)

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
