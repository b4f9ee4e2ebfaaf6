"""Publishes rows of the outbox to their topic: reserve, publish, mark; behind a circuit breaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Generic

import grpc
import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.process.loops import note_fault
from engine.process.run import pause
from engine.pubsub.breaker import Breaker
from engine.pubsub.client import Fault, code, details, fault
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
from relay.publishing.outbox_sources import ItemT, OutboxSource
from relay.publishing.publisher import Publisher

IN_FLIGHT: Final = 3
"""Concurrent requests of one topic."""
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
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._failing: Exception | None = None
        """Why the last read of the outbox failed."""
        self._cycled = time.monotonic()
        self._seconds = PUBLISH_SECONDS.labels(subject)
        self._rows = PUBLISH_ROWS.labels(subject)
        self._taken = PUBLISHED_ROWS.labels(subject)
        self._shown_cycle = RELAY_CYCLED_AT.labels(subject)
        self._shown_cycle.set_to_current_time()
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
        """Seconds since the last read of the outbox; 0 while the breaker is open, which is no fault of the relay."""
        return time.monotonic() - self._cycled if self._breaker.closed else 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop`, then wait for the requests in flight."""
        idle = MIN_IDLE_SECONDS
        try:
            async with asyncio.TaskGroup() as sends:
                while not stop.is_set():
                    if self._breaker.pause:
                        self._shown_cycle.set_to_current_time()
                        await pause(stop, self._breaker.pause)
                        continue
                    # Cleared before rows are taken: a hint that arrives meanwhile must not be lost.
                    self._wake.clear()
                    await self._room.acquire()
                    if self._breaker.pause:  # a request in flight has failed
                        self._room.release()
                        continue
                    items = await self._take()
                    if items:
                        idle = MIN_IDLE_SECONDS
                        send = sends.create_task(self._send(items))
                        if not self._breaker.closed:
                            await send  # a probe goes alone
                        continue
                    self._room.release()
                    idle = min(idle * 2, MAX_IDLE_SECONDS)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(idle):
                            await self._wake.wait()
        finally:
            await self._source.aclose()

    async def _take(self) -> list[ItemT]:
        try:
            items = await self._source.take()
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
        self._failing, self._cycled = None, time.monotonic()
        self._shown_cycle.set_to_current_time()
        return items

    async def _send(self, items: Sequence[ItemT]) -> None:
        faults: list[Exception] = []
        try:
            await self._publish(items, faults)
        except (DatabaseUnavailable, Error) as error:
            # When the reservation ends, the rows are published again with the same message ids.
            log_at = by_blame(log, error)
            log_at("outbox.not_marked", topic=self._name, rows=len(items))
        except Exception as error:  # noqa: BLE001 - the other requests and topics go on
            faults.append(error)
        finally:
            self._room.release()
        if faults:
            note_fault("publish", faults[0])

    async def _publish(self, items: Sequence[ItemT], faults: list[Exception]) -> None:
        """Publish and mark `items`. Adds the errors of messages that only a bug can explain to `faults`."""
        try:
            messages = [item.message for item in items]
            contexts = (message.attributes.get("traceparent") for message in messages)
            self._rows.observe(len(items))
            with self._seconds.time(), tracing.publish(self._name, contexts, len(messages)):
                await self._publisher.publish(self._topic, messages)
        except grpc.RpcError as error:
            PUBLISH_ERRORS.labels(self._subject, code(error).name.lower()).inc()
            if fault(error) is Fault.REFUSED:
                self._answered()
                if len(items) == 1:
                    await self._source.refuse(items[0], details(error))
                else:
                    await self._publish_halves(items, faults)
            else:
                self._unanswered(error)
                await self._source.release(items)
        except Exception as error:  # noqa: BLE001 - one message that cannot be encoded must not keep the others
            if len(items) == 1:
                # Not set aside, because the fault is ours: the row is tried again when its reservation ends.
                faults.append(error)
            else:
                await self._publish_halves(items, faults)
        else:
            self._taken.inc(len(items))
            self._answered()
            await self._source.sent(items)

    async def _publish_halves(self, items: Sequence[ItemT], faults: list[Exception]) -> None:
        """Find the bad message by halving: the broker refuses a whole request for one message.

        Raises the database's error after both halves have been tried.
        """
        middle = len(items) // 2
        failed: DatabaseUnavailable | Error | None = None
        for half in (items[:middle], items[middle:]):
            try:
                await self._publish(half, faults)
            except (DatabaseUnavailable, Error) as error:
                failed = error
        if failed is not None:
            raise failed

    def _answered(self) -> None:
        seconds = self._breaker.open_seconds
        if self._breaker.succeed():
            log.info("breaker.closed", topic=self._name, after_seconds=round(seconds, 1))
            self._show(None)

    def _unanswered(self, error: grpc.RpcError) -> None:
        kind = fault(error)
        if self._breaker.fail(kind):
            fix = (
                "run `outrider provision`, and check the process's Pub/Sub permissions"
                if kind is Fault.MISCONFIGURED
                else None
            )
            log.warning(
                "breaker.opened", topic=self._name, reason=code(error).name, error=details(error), fix=fix
            )
            self._show(kind, f"{code(error).name}: {details(error)}")

    def _show(self, kind: Fault | None, detail: str | None = None) -> None:
        self._state = (STATES[kind], time.monotonic(), detail)
        for each in (Fault.PASSING, Fault.MISCONFIGURED):
            BREAKER_OPEN.labels(self._subject, each.value).set(each is kind)
