"""The source of a worker in pubsub mode: messages name the jobs to claim, and the outbox has the jobs' data."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import grpc
import structlog
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
from psycopg import Error

from engine.errors import BrokerUnavailable, DatabaseUnavailable, LeaseLost
from engine.model import Attempt
from engine.moves import claim_named
from engine.process.run import pause
from engine.pubsub.breaker import Breaker
from engine.pubsub.client import Fault, code, details, fault, names, open_subscriber
from engine.pubsub.messages import Undecodable, job_id_of, undecodable
from engine.settings import Settings
from engine.storage.connections import PinnedConnection
from engine.storage.faults import by_blame, told
from engine.tables import events
from engine.telemetry.metrics import MESSAGES, STREAM_STALLS
from worker.acknowledgements import Acknowledgements
from worker.source import FallbackScan
from worker.stream import CLOSE_SECONDS, Received, Stream

SILENT_SECONDS: Final = 10.0
"""A stream has stalled when it delivers nothing for this long while published jobs grow old."""
MAX_STALLS: Final = 3
LOST_SECONDS: Final = 30.0
"""How long the worker stays ready without a stream. Its jobs come from the outbox meanwhile."""
ESTABLISHED_SECONDS: Final = 1.0
DATABASE_PAUSE_SECONDS: Final = 1.0

CLAIMED, LATE, UNDECODABLE = (MESSAGES.labels(action) for action in ("claimed", "late", "undecodable"))

log = structlog.get_logger()


class Delivery(NamedTuple):
    """A message whose job is not claimed yet."""

    ack_id: str
    job_id: UUID


class PubSubSource:
    """Claims the jobs that messages name. A message is acknowledged after its claim has committed, never before.

    From the commit on PostgreSQL owns the job. A job that cannot be claimed belongs to another worker or is finished:
    its message is acknowledged, too. While the database is away, messages wait here, and none is read, acknowledged
    or released: the broker would count a release as a failed delivery. With no message at hand, jobs are claimed
    whose message did not come.
    """

    def __init__(
        self, url: str, presets: Sequence[str], client: SubscriberAsyncClient, subscription: str, slots: int
    ) -> None:
        self._presets = list(presets)
        self._transport: Any = client.transport
        self._subscription = subscription
        self._slots = slots
        self._conn = PinnedConnection(url, name="claim")
        self._burying = PinnedConnection(url, name="dead-letters")
        self._fallback = FallbackScan(self._conn, presets)
        self._closing = asyncio.Event()
        self._acks = Acknowledgements(client.transport, subscription, self._closing)
        self._breaker = Breaker()
        self._at_hand: deque[Delivery] = deque()
        self._wanted = slots
        self._room = asyncio.Event()
        self._stream: Stream | None = None
        self._ended = asyncio.Event()
        self._heard = time.monotonic()
        self._stalls = 0

    async def ready(self) -> None:
        if self._stalls >= MAX_STALLS:
            raise BrokerUnavailable(f"the last {self._stalls} Pub/Sub streams delivered no message")
        if self._breaker.open_seconds > LOST_SECONDS:
            raise BrokerUnavailable(f"no Pub/Sub stream for {self._breaker.open_seconds:.0f} s")

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        try:
            attempts = await self._claim_at_hand(worker_id, limit)
        except LeaseLost:
            # The messages wait for the next lease.
            return []
        if not attempts:
            attempts = await self._fallback.claim(worker_id, limit)
            self._look_for_stall()
        self._wanted = limit - len(attempts)
        self._room.set()
        return attempts

    async def _claim_at_hand(self, worker_id: int, limit: int) -> list[Attempt]:
        attempts: list[Attempt] = []
        while self._at_hand and not attempts:
            batch = [self._at_hand.popleft() for _ in range(min(limit, len(self._at_hand)))]
            try:
                async with self._conn.use() as conn:
                    ids = [each.job_id for each in batch]
                    attempts = await claim_named(conn, worker_id, self._presets, ids)
            except BaseException:
                self._at_hand.extendleft(reversed(batch))
                raise
            self._settle(batch, attempts)
        return attempts

    def _settle(self, batch: Sequence[Delivery], attempts: Sequence[Attempt]) -> None:
        claimed = {attempt.job.id for attempt in attempts}
        for delivery in batch:
            # A job counts as claimed once: a second message for the same job is late.
            (CLAIMED if delivery.job_id in claimed else LATE).inc()
            claimed.discard(delivery.job_id)
            self._acks.put(delivery.ack_id)

    async def run(self, wake: Callable[[], None]) -> None:
        """Keep a stream open until drained, and call `wake` when messages have arrived."""
        self._ended.clear()
        try:
            while not self._closing.is_set():
                self._stream = Stream(self._transport.streaming_pull, self._subscription, self._slots)
                self._heard = time.monotonic()
                establishing = asyncio.create_task(self._establish(self._stream))
                try:
                    await self._receive(self._stream, wake)
                    if not self._stream.closing:
                        self._lost(Fault.PASSING, grpc.StatusCode.OK, "the broker ended the stream")
                except grpc.RpcError as error:
                    self._lost(fault(error), code(error), details(error))
                finally:
                    establishing.cancel()
                    self._stream.close()
                await pause(self._closing, self._breaker.pause)
        finally:
            self._ended.set()

    async def _establish(self, stream: Stream) -> None:
        """Count a stream as open when it is connected and not refused for a second: an idle broker sends nothing."""
        with suppress(grpc.RpcError):  # `read` raises the error, too
            await stream.connected()
            await asyncio.sleep(ESTABLISHED_SECONDS)
            self._found()

    async def _receive(self, stream: Stream, wake: Callable[[], None]) -> None:
        while True:
            while len(self._at_hand) >= self._wanted and not stream.closing:
                self._room.clear()
                await self._room.wait()
            received = await stream.read()
            if received is None:
                return
            self._heard, self._stalls = time.monotonic(), 0
            self._found()
            for message in received:
                await self._accept(message)
            wake()

    async def _accept(self, message: Received) -> None:
        try:
            self._at_hand.append(Delivery(message.ack_id, job_id_of(message.data)))
        except Undecodable as error:
            await self._bury(message, error)

    async def _bury(self, message: Received, fault: Undecodable) -> None:
        """Write the message as a dead letter, then acknowledge it. No message is read while the database is away."""
        letter = undecodable(message.message_id, message.data, fault, datetime.now(UTC))
        log.error("message.undecodable", message_id=message.message_id, error=str(fault))
        failing: Exception | None = None
        while not self._closing.is_set():
            try:
                async with self._burying.use() as conn:
                    await events.write(conn, "dead-letters", letter)
            except (DatabaseUnavailable, Error) as error:
                # If no try succeeds, the broker delivers the message again.
                if not told(failing, error):
                    log_at = by_blame(log, error)
                    log_at("dead_letter.not_written", message_id=message.message_id)
                failing = error
                await pause(self._closing, DATABASE_PAUSE_SECONDS)
                continue
            UNDECODABLE.inc()
            self._acks.put(message.ack_id)
            return

    def _found(self) -> None:
        seconds = self._breaker.open_seconds
        if self._breaker.succeed():
            log.info("stream.found", subscription=self._subscription, after_seconds=round(seconds, 1))

    def _lost(self, kind: Fault, reason: grpc.StatusCode, error: str) -> None:
        # A refused stream is handled like a misconfigured one: it is tried again, and logged with a fix.
        kind = Fault.MISCONFIGURED if kind is Fault.REFUSED else kind
        if self._breaker.fail(kind) and not self._closing.is_set():
            fix = (
                "run `outrider provision`, and check the process's Pub/Sub permissions"
                if kind is Fault.MISCONFIGURED
                else None
            )
            log.warning(
                "stream.lost",
                subscription=self._subscription,
                reason=reason.name,
                error=error,
                fix=fix,
            )

    def _look_for_stall(self) -> None:
        """Close a stream that delivers nothing while published jobs grow old: a stream may die without an error."""
        silent = time.monotonic() - self._heard
        if self._stream is None or self._stream.closing or not self._fallback.undelivered:
            return
        if silent < SILENT_SECONDS:
            return
        self._stalls += 1
        STREAM_STALLS.inc()
        log.warning("stream.stalled", subscription=self._subscription, silent_seconds=round(silent, 1))
        self._heard = time.monotonic()
        self._stream.close()
        self._room.set()

    async def hold(self) -> None:
        # Nothing is read until the next claim, so a silent stream is no sign of a stall.
        self._wanted, self._heard = 0, time.monotonic()
        await self._release()

    async def drain(self) -> None:
        """Close the stream and release the messages at hand: other workers get them before their ack deadline."""
        self._closing.set()
        if self._stream is not None:
            self._stream.close()
        self._room.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS + 1):
                await self._ended.wait()
        await self._release()
        await self._acks.drain()

    async def _release(self) -> None:
        ids = [delivery.ack_id for delivery in self._at_hand]
        self._at_hand.clear()
        await self._acks.release(ids)

    async def aclose(self) -> None:
        await self._conn.aclose()
        await self._burying.aclose()


@asynccontextmanager
async def open_source(settings: Settings, url: str, presets: Sequence[str]) -> AsyncIterator[PubSubSource]:
    """The source of the jobs subscription. Raises ConfigurationError without a project or credentials for Pub/Sub."""
    topics = names(settings)
    async with open_subscriber() as client:
        yield PubSubSource(
            url, presets, client, topics.subscription(topics.jobs), settings.worker_concurrency
        )
