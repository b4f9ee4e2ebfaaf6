"""The source of a worker in pubsub mode: messages name the jobs to claim, and the outbox has the jobs' data."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
from psycopg import Error

from engine.cancellation import being_cancelled
from engine.errors import DatabaseUnavailable, LeaseLost
from engine.model import Attempt
from engine.moves import claim_named
from engine.process.run import pause
from engine.pubsub.client import names, open_subscriber
from engine.pubsub.messages import Undecodable, job_id_of, undecodable
from engine.settings import Settings
from engine.storage.connections import PinnedConnection
from engine.storage.faults import by_blame, told
from engine.tables import events
from engine.telemetry.metrics import MESSAGES
from worker.acknowledgements import Acknowledgements
from worker.source import ASTRAY_SCAN_SECONDS, FallbackScan
from worker.stream import CLOSE_SECONDS, Received, Stream, StreamLost
from worker.stream_health import StreamHealth

ESTABLISHED_SECONDS: Final = 1.0
OVERDUE_SHARE: Final = 8
"""With messages at hand, one in so many of the wanted jobs, and one at least, may be one whose message is overdue."""
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

    takes_ready = False

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
        self._health = StreamHealth(subscription)
        self._at_hand: deque[Delivery] = deque()
        self._wanted = slots
        self._room = asyncio.Event()
        self._stream: Stream | None = None
        self._claiming = asyncio.Event()
        """Cleared while held: no stream is open then."""
        self._claiming.set()
        self._ended = asyncio.Event()

    async def ready(self) -> None:
        self._health.check()

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        self._claiming.set()
        try:
            attempts = await self._claim(worker_id, limit)
        except LeaseLost:
            # The messages wait for the next lease.
            return []
        self._wanted = limit - len(attempts)
        self._room.set()
        return attempts

    async def _claim(self, worker_id: int, limit: int) -> list[Attempt]:
        astray = self._health.astray
        messages = bool(self._at_hand)
        if messages:
            share = max(1, limit // OVERDUE_SHARE)
            if overdue := await self._fallback.claim_overdue(worker_id, share, astray=astray):
                return overdue
        if attempts := await self._claim_at_hand(worker_id, limit):
            return attempts
        attempts = await self._fallback.claim(worker_id, limit, astray=astray, messages=messages)
        self._look_for_stall()
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
        """Keep a stream open until drained, except while held. Call `wake` when a claim may find jobs."""
        self._ended.clear()
        searching = asyncio.create_task(self._search(wake))
        try:
            while not self._closing.is_set():
                await self._read_one(wake)
                await pause(self._closing, self._health.pause)
                await self._claiming.wait()
        finally:
            searching.cancel()
            self._ended.set()

    async def _read_one(self, wake: Callable[[], None]) -> None:
        """Open a stream and read it to its end."""
        self._health.opened()
        stream: Stream | None = None
        establishing: asyncio.Task[None] | None = None
        try:
            stream = self._stream = Stream(self._transport.streaming_pull, self._subscription, self._slots)
            establishing = asyncio.create_task(self._establish(stream))
            await self._receive(stream, wake)
        except StreamLost as lost:
            self._health.lost(lost, quiet=self._closing.is_set())
        finally:
            if establishing is not None:
                establishing.cancel()
            if stream is not None:
                await self._leave(stream)

    async def _establish(self, stream: Stream) -> None:
        """Count a stream as open when it is connected and not refused for a second: an idle broker sends nothing."""
        with suppress(StreamLost):  # `read` raises the error, too
            await stream.connected()
            await asyncio.sleep(ESTABLISHED_SECONDS)
            self._health.established()

    async def _receive(self, stream: Stream, wake: Callable[[], None]) -> None:
        while True:
            # One answer is read ahead: without a message at hand the next claim would search the outbox.
            while len(self._at_hand) >= max(1, self._wanted) and not stream.closing:
                self._room.clear()
                await self._room.wait()
                self._health.listened()
            received = await stream.read()
            if received is None:
                return
            self._health.heard()
            for message in received:
                await self._accept(message)
            if not self._claiming.is_set():
                await self._release()
            wake()

    async def _leave(self, stream: Stream) -> None:
        """Half-close a stream that may still be open, and give back what it brings until its end.

        The broker would deliver into a call that nobody reads, and keep these messages until their ack deadline.
        """
        stream.close()
        if being_cancelled():
            return
        # The call has ended, or brings nothing that can be read: it is cancelled after CLOSE_SECONDS.
        with suppress(StreamLost):
            while (received := await stream.read()) is not None:
                await self._acks.release([message.ack_id for message in received])

    async def _search(self, wake: Callable[[], None]) -> None:
        """Wake the claims often while messages may be on their way to a stream that is lost."""
        while True:
            await asyncio.sleep(ASTRAY_SCAN_SECONDS)
            if self._health.astray:
                wake()

    async def _accept(self, message: Received) -> None:
        try:
            self._at_hand.append(Delivery(message.ack_id, job_id_of(message.data)))
        except Undecodable as error:
            await self._bury(message, error)

    async def _bury(self, message: Received, fault: Undecodable) -> None:
        """Write the message as a dead letter, then acknowledge it. No message is read while the database is away."""
        letter = undecodable(message.message_id, message.data, fault, datetime.now(UTC), message.attributes)
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

    def _look_for_stall(self) -> None:
        """Close a stream that delivers nothing while published jobs grow old."""
        if self._stream is None or self._stream.closing:
            return
        self._health.missed(self._fallback.undelivered)
        if self._health.stalled():
            self._stream.close()
            self._room.set()

    async def hold(self) -> None:
        # A stream would go on to bring messages, which would wait here until their ack deadline.
        self._claiming.clear()
        self._wanted = 0
        if self._stream is not None:
            self._stream.close()
        self._room.set()
        await self._release()

    async def drain(self) -> None:
        """Close the stream and release the messages at hand: other workers get them before their ack deadline."""
        self._closing.set()
        self._claiming.set()
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
