"""Publishes rows of the outbox to their topic: reserve, publish, mark."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Generic

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.process.loops import note_fault
from engine.process.run import pause
from engine.storage.faults import by_blame, told
from engine.tables.relay_status import RelayStatus, Subject
from engine.telemetry.metrics import RELAY_CYCLED_AT
from relay.publishing.broker import Broker
from relay.publishing.delivery import Delivery
from relay.publishing.outbox_sources import ItemT, OutboxSource, reserved_seconds
from relay.publishing.publisher import Publisher
from relay.publishing.request_size import BASE_SECONDS, Room

IN_FLIGHT: Final = 3
"""Concurrent requests of one topic."""
STOP_SECONDS: Final = BASE_SECONDS
"""How long a stop waits for requests in flight. A large one may take minutes: its rows are released."""
MIN_IDLE_SECONDS: Final = 0.02
MAX_IDLE_SECONDS: Final = 0.5

log = structlog.get_logger()


class PublishLoop(Generic[ItemT]):
    """Publishes the rows of `source` to `topic` until stopped. `wake` is a hint that there are new rows."""

    def __init__(
        self, subject: Subject, topic: str, source: OutboxSource[ItemT], publisher: Publisher
    ) -> None:
        self._source = source
        self._broker = Broker(subject, topic, publisher)
        self._wake = asyncio.Event()
        self._sends: dict[asyncio.Task[None], list[ItemT]] = {}
        """The requests in flight, with their rows."""
        self._failing: Exception | None = None
        """Why the last read of the outbox failed."""
        self._shown_cycle = RELAY_CYCLED_AT.labels(subject)
        self._turned()

    def wake(self) -> None:
        self._wake.set()

    @property
    def status(self) -> RelayStatus:
        return self._broker.status

    @property
    def behind_seconds(self) -> float:
        """Seconds since the last read of the outbox, or wait for the broker; 0 while the breaker is open."""
        return time.monotonic() - self._cycled if self._broker.closed else 0.0

    def _turned(self) -> None:
        """Note that the outbox was read, or that the loop waits for the broker."""
        self._cycled = time.monotonic()
        self._shown_cycle.set_to_current_time()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop`, then wait STOP_SECONDS for the requests in flight."""
        try:
            await self._run(stop)
            await self._finish()
        finally:
            for send in self._sends:
                send.cancel()
            if self._sends:
                await asyncio.wait(self._sends, timeout=STOP_SECONDS)
            await self._source.aclose()

    async def _run(self, stop: asyncio.Event) -> None:
        idle = MIN_IDLE_SECONDS
        probe: asyncio.Task[None] | None = None
        while not stop.is_set():
            if self._broker.pause:
                self._turned()
                await pause(stop, self._broker.pause)
                continue
            if len(self._sends) >= IN_FLIGHT or probe in self._sends:
                # A request may take minutes, so the wait ends sooner, to look at `stop`.
                self._turned()
                await asyncio.wait(self._sends, timeout=MAX_IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                continue
            # Cleared before rows are taken: a hint that arrives meanwhile must not be lost.
            self._wake.clear()
            if send := await self._begin():
                idle = MIN_IDLE_SECONDS
                probe = None if self._broker.closed else send
                continue
            idle = min(idle * 2, MAX_IDLE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._wake.wait()

    async def _begin(self) -> asyncio.Task[None] | None:
        """Begin to publish the next rows, if there are any."""
        apart = self._broker.probes_apart
        room = self._broker.size.room(probing=not self._broker.closed, alone=apart)
        began = time.monotonic()
        items = await self._take(room)
        if not items:
            return None
        sizes = [item.weight for item in items]
        self._broker.size.add(sizes)
        until = began + reserved_seconds(room.ahead + sum(sizes))
        # The messages are made in the task, while the database looks for the next rows.
        send = asyncio.create_task(
            self._send(items, sizes, Delivery(self._source, self._broker, until, apart=apart))
        )
        self._sends[send] = items
        send.add_done_callback(self._sends.pop)
        return send

    async def _finish(self) -> None:
        """Wait for the requests in flight, then cancel them and release their rows."""
        if not self._sends:
            return
        await asyncio.wait(self._sends, timeout=STOP_SECONDS)
        for send, items in list(self._sends.items()):
            send.cancel()
            try:
                await self._source.release(items)
            except (DatabaseUnavailable, Error):
                return  # the rows are free when their reservation ends

    async def _take(self, room: Room) -> list[ItemT]:
        """The next rows, if there are any and they can be read."""
        try:
            items = await self._source.take(room)
        except (DatabaseUnavailable, Error) as error:
            if not told(self._failing, error):
                log_at = by_blame(log, error)
                log_at("outbox.lost", topic=self._broker.name)
            self._failing = error
            return []
        except Exception as error:  # noqa: BLE001 - requests in flight must not end with the loop
            note_fault("publish", error)
            return []
        if self._failing is not None:
            log.info("outbox.found", topic=self._broker.name)
        self._failing = None
        self._turned()
        return items

    async def _send(self, items: Sequence[ItemT], sizes: Sequence[int], delivery: Delivery[ItemT]) -> None:
        try:
            await delivery.run(items)
        except (DatabaseUnavailable, Error) as error:
            # When the reservation ends, the rows are published again with the same message ids.
            log_at = by_blame(log, error)
            log_at("outbox.not_marked", topic=self._broker.name, rows=len(items))
        except Exception as error:  # noqa: BLE001 - the other requests and topics go on
            note_fault("publish", error)
        finally:
            self._broker.size.remove(sizes)
