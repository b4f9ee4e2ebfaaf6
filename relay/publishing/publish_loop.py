"""Publishes rows of the outbox to their topic: reserve, publish, mark; behind a circuit breaker."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Generic

import structlog
from psycopg import Error

from engine.cancellation import survivable
from engine.errors import DatabaseUnavailable
from engine.process.loops import note_fault
from engine.process.run import pause
from engine.pubsub.breaker import Breaker
from engine.pubsub.client import Fault
from engine.pubsub.messages import Message
from engine.storage.faults import by_blame, told
from engine.tables.relay_status import RelayStatus, State, Subject
from engine.telemetry import tracing
from engine.telemetry.metrics import (
    BREAKER_OPEN,
    PUBLISH_ERRORS,
    PUBLISH_ROWS,
    PUBLISH_SECONDS,
    PUBLISHED_ROWS,
    RELAY_CYCLED_AT,
)
from relay.publishing.answers import Answer, judge
from relay.publishing.delivery import Delivery, Outgoing
from relay.publishing.outbox_sources import MAX_ROWS, ItemT, OutboxSource, reserved_seconds
from relay.publishing.publisher import Publisher
from relay.publishing.request_size import BASE_SECONDS, RequestSize, Room

IN_FLIGHT: Final = 3
"""Concurrent requests of one topic."""
STOP_SECONDS: Final = BASE_SECONDS
"""How long a stop waits for requests in flight. A large one may take minutes: its rows are released."""
LONE_PROBES: Final = 5
"""After so many failures in a row, a probe has one row, each time another one: a row may be what the broker cannot
answer."""
HEALTHY_SECONDS: Final = 60.0
"""For so long after a success, a message that fails alone is to blame itself."""
MIN_IDLE_SECONDS: Final = 0.02
MAX_IDLE_SECONDS: Final = 0.5
STATES: Final[Mapping[Fault | None, State]] = {
    None: "publishing",
    Fault.PASSING: "passing",
    Fault.MISCONFIGURED: "misconfigured",
}

log = structlog.get_logger()


class PublishLoop(Generic[ItemT]):
    """Publishes the rows of `source` to `topic` until stopped. `wake` is a hint that there are new rows.

    Metrics name the topic by its `subject`, which settings do not change; logs and traces use the topic's name.
    """

    def __init__(
        self, subject: Subject, topic: str, source: OutboxSource[ItemT], publisher: Publisher
    ) -> None:
        self._subject = subject
        self._topic = topic
        self._name = topic.rpartition("/")[2]
        self._source = source
        self._publisher = publisher
        self._breaker = Breaker()
        self._wake = asyncio.Event()
        self._size = RequestSize(MAX_ROWS)
        self._failures = 0
        """Requests that failed since the last one that was answered."""
        self._taken_at = -math.inf
        """When the broker last took messages."""
        self._failing: Exception | None = None
        """Why the last read of the outbox failed."""
        self._seconds = PUBLISH_SECONDS.labels(subject)
        self._rows = PUBLISH_ROWS.labels(subject)
        self._taken = PUBLISHED_ROWS.labels(subject)
        self._shown_cycle = RELAY_CYCLED_AT.labels(subject)
        self._turned()
        self._show(None)

    def wake(self) -> None:
        self._wake.set()

    @property
    def status(self) -> RelayStatus:
        """Whether publishing to the topic succeeds, and since when."""
        state, since, detail = self._state
        return RelayStatus(self._subject, state, time.monotonic() - since, detail)

    @property
    def behind_seconds(self) -> float:
        """Seconds since the last read of the outbox, or wait for the broker; 0 while the breaker is open."""
        return time.monotonic() - self._cycled if self._breaker.closed else 0.0

    def _turned(self) -> None:
        """Note that the outbox was read, or that the loop waits for the broker."""
        self._cycled = time.monotonic()
        self._shown_cycle.set_to_current_time()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop`, then wait STOP_SECONDS for the requests in flight."""
        sends: dict[asyncio.Task[None], list[Outgoing[ItemT]]] = {}
        try:
            await self._run(stop, sends)
            await self._finish(sends)
        finally:
            for send in sends:
                send.cancel()
            if sends:
                await asyncio.wait(sends, timeout=STOP_SECONDS)
            await self._source.aclose()

    async def _run(self, stop: asyncio.Event, sends: dict[asyncio.Task[None], list[Outgoing[ItemT]]]) -> None:
        idle = MIN_IDLE_SECONDS
        probe: asyncio.Task[None] | None = None
        while not stop.is_set():
            if self._breaker.pause:
                self._turned()
                await pause(stop, self._breaker.pause)
                continue
            if len(sends) >= IN_FLIGHT or probe in sends:
                # A request may take minutes, so the wait ends sooner, to look at `stop`.
                self._turned()
                await asyncio.wait(sends, timeout=MAX_IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                continue
            # Cleared before rows are taken: a hint that arrives meanwhile must not be lost.
            self._wake.clear()
            if send := await self._begin(sends):
                idle = MIN_IDLE_SECONDS
                probe = None if self._breaker.closed else send
                continue
            idle = min(idle * 2, MAX_IDLE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._wake.wait()

    async def _begin(
        self, sends: dict[asyncio.Task[None], list[Outgoing[ItemT]]]
    ) -> asyncio.Task[None] | None:
        """Begin to publish the next rows, if there are any. The task is in `sends` until it ends."""
        apart = self._failures >= LONE_PROBES
        room = self._size.room(probing=not self._breaker.closed, alone=apart)
        began = time.monotonic()
        rows = await self._take(room)
        if not rows:
            return None
        sizes = [row.size for row in rows]
        self._size.add(sizes)
        until = began + reserved_seconds(room.ahead + sum(sizes))
        send = asyncio.create_task(self._send(rows, Delivery(self._source, self, until, apart=apart)))
        sends[send] = rows
        send.add_done_callback(sends.pop)
        return send

    async def _finish(self, sends: Mapping[asyncio.Task[None], list[Outgoing[ItemT]]]) -> None:
        """Wait for the requests in flight, then cancel them and release their rows."""
        if not sends:
            return
        await asyncio.wait(sends, timeout=STOP_SECONDS)
        for send, rows in [(send, rows) for send, rows in sends.items() if not send.done()]:
            send.cancel()
            try:
                await self._source.release([row.item for row in rows])
            except (DatabaseUnavailable, Error):
                return  # the rows are free when their reservation ends

    async def _take(self, room: Room) -> list[Outgoing[ItemT]]:
        """The next rows, if there are any and they can be read."""
        try:
            rows = [Outgoing.of(item) for item in await self._source.take(room)]
        except (DatabaseUnavailable, Error) as error:
            if not told(self._failing, error):
                log_at = by_blame(log, error)
                log_at("outbox.lost", topic=self._name)
            self._failing = error
            return []
        except Exception as error:  # noqa: BLE001 - requests in flight must not end with the loop
            note_fault("publish", error)
            return []
        if self._failing is not None:
            log.info("outbox.found", topic=self._name)
        self._failing = None
        self._turned()
        return rows

    async def _send(self, rows: Sequence[Outgoing[ItemT]], delivery: Delivery[ItemT]) -> None:
        try:
            await delivery.run(rows)
        except (DatabaseUnavailable, Error) as error:
            # When the reservation ends, the rows are published again with the same message ids.
            log_at = by_blame(log, error)
            log_at("outbox.not_marked", topic=self._name, rows=len(rows))
        except Exception as error:  # noqa: BLE001 - the other requests and topics go on
            note_fault("publish", error)
        finally:
            self._size.remove([row.size for row in rows])

    async def ask(self, messages: Sequence[Message], size: int) -> Answer | None:
        """Publish `messages` in one request. Returns what is wrong, or None if the broker has taken them."""
        self._rows.observe(len(messages))
        contexts = [_context(message) for message in messages]
        try:
            with (
                self._seconds.time(),
                tracing.publish(self._name, contexts, len(messages)),
                self._size.timing(size),
            ):
                await self._publisher.publish(self._topic, messages)
        except BaseException as error:
            if not survivable(error):
                raise
            answer = judge(error)
            PUBLISH_ERRORS.labels(self._subject, answer.code.lower()).inc()
            if answer.code == "ERROR":
                note_fault("publish", error)
            return answer
        self._taken.inc(len(messages))
        self._taken_at = time.monotonic()
        return None

    def healthy(self) -> bool:
        return time.monotonic() - self._taken_at < HEALTHY_SECONDS

    def patient(self) -> bool:
        return self._breaker.closed

    def answered(self) -> None:
        seconds = self._breaker.open_seconds
        self._failures = 0
        if self._breaker.succeed():
            log.info("breaker.closed", topic=self._name, after_seconds=round(seconds, 1))
            self._show(None)

    def unanswered(self, answer: Answer) -> float:
        if not self._breaker.pause:
            self._failures += 1
        if self._breaker.fail(answer.fault):
            log.warning(
                "breaker.opened", topic=self._name, reason=answer.code, error=answer.details, fix=answer.fix
            )
            self._show(answer.fault, str(answer))
        return self._breaker.pause

    def _show(self, kind: Fault | None, detail: str | None = None) -> None:
        self._state = (STATES[kind], time.monotonic(), detail)
        for each in (Fault.PASSING, Fault.MISCONFIGURED):
            BREAKER_OPEN.labels(self._subject, each.value).set(each is kind)


def _context(message: Message) -> str | None:
    """The trace of a message. SQL may have written anything that is JSON as its attributes."""
    attributes = message.attributes
    found = attributes.get("traceparent") if isinstance(attributes, Mapping) else None
    return found if isinstance(found, str) else None
