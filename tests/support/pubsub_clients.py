"""Google's unmodified asyncio clients, as tests use them on a broker that listens without TLS."""

from __future__ import annotations

import asyncio
from asyncio import Queue, create_task, timeout
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from google.pubsub_v1.types import (
    PubsubMessage,
    ReceivedMessage,
    StreamingPullRequest,
    Subscription,
    UpdateSubscriptionRequest,
)

SECONDS = 20.0
"""Longer than any of these calls takes, so that a test fails instead of hanging."""
PULL_SECONDS = 0.5
"""Brokers answer an empty pull shortly before its deadline."""
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),  # or a new client shares the back-off of the ones before
]


class Clients:
    """One project's topics and subscriptions by their last names. No call is retried."""

    def __init__(self, project: str, channel: grpc.aio.Channel) -> None:
        self.project = project
        self._channel = channel
        self.publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        self.subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))

    async def close(self) -> None:
        """Breaks off what is under way, as the end of the process would."""
        await self._channel.close()

    def topic(self, name: str) -> str:
        return f"projects/{self.project}/topics/{name}"

    def subscription(self, name: str) -> str:
        return f"projects/{self.project}/subscriptions/{name}"

    async def create_topic(self, name: str = "jobs") -> str:
        await self.publisher.create_topic(name=self.topic(name), retry=None, timeout=SECONDS)
        return self.topic(name)

    async def create(self, name: str = "jobs", **settings: Any) -> str:
        """A topic, and its subscription `name`-sub, whose full name is returned."""
        return await self.subscribe(f"{name}-sub", await self.create_topic(name), **settings)

    async def subscribe(self, name: str, topic: str, **settings: Any) -> str:
        request = Subscription(name=self.subscription(name), topic=topic, **settings)
        made = await self.subscriber.create_subscription(request=request, retry=None, timeout=SECONDS)
        return str(made.name)

    async def update(self, subscription: Subscription, *paths: str) -> None:
        request = UpdateSubscriptionRequest(subscription=subscription, update_mask=FieldMask(paths=paths))
        await self.subscriber.update_subscription(request=request, retry=None, timeout=SECONDS)

    async def publish(self, *messages: PubsubMessage | bytes, topic: str = "jobs") -> list[str]:
        """The message ids; a message of bytes alone has no attributes."""
        given = [PubsubMessage(data=each) if isinstance(each, bytes) else each for each in messages]
        response = await self.publisher.publish(
            topic=self.topic(topic), messages=given, retry=None, timeout=SECONDS
        )
        return list(response.message_ids)

    async def pull(self, count: int, subscription: str = "jobs-sub") -> list[ReceivedMessage]:
        """Pulls until there are `count` messages."""
        received: list[ReceivedMessage] = []
        async with timeout(SECONDS):
            while len(received) < count:
                received += await self.pull_once(subscription)
        return received

    async def pull_once(self, subscription: str = "jobs-sub") -> list[ReceivedMessage]:
        """What is there within half a second."""
        response = await self.subscriber.pull(
            subscription=self.subscription(subscription), max_messages=1000, retry=None, timeout=PULL_SECONDS
        )
        return list(response.received_messages)

    async def acknowledge(self, ack_ids: Iterable[str], subscription: str = "jobs-sub") -> None:
        await self.subscriber.acknowledge(
            subscription=self.subscription(subscription), ack_ids=list(ack_ids), retry=None, timeout=SECONDS
        )

    async def modify(self, ack_ids: Iterable[str], seconds: int, subscription: str = "jobs-sub") -> None:
        """0 s is a nack."""
        await self.subscriber.modify_ack_deadline(
            subscription=self.subscription(subscription),
            ack_ids=list(ack_ids),
            ack_deadline_seconds=seconds,
            retry=None,
            timeout=SECONDS,
        )

    @asynccontextmanager
    async def stream(self, subscription: str = "jobs-sub", **settings: Any) -> AsyncIterator[Stream]:
        """An open StreamingPull. It is half-closed at the end, never cancelled: the emulator would go on delivering to
        the cancelled call.
        """
        first = StreamingPullRequest(
            subscription=self.subscription(subscription), **{"stream_ack_deadline_seconds": 60, **settings}
        )
        opened = Stream(self.subscriber, first)
        try:
            yield opened
        finally:
            opened.half_close()
            await opened.ended()


class Stream:
    """`received` grows as messages come; `answers` has the number of messages of each response."""

    def __init__(self, subscriber: SubscriberAsyncClient, first: StreamingPullRequest) -> None:
        self.received: list[ReceivedMessage] = []
        self.answers: list[int] = []
        self.error: Exception | None = None
        self._requests: Queue[StreamingPullRequest | None] = Queue()
        self._requests.put_nowait(first)
        self._changed = asyncio.Event()
        self._reading = create_task(self._read(subscriber))

    def send(self, **fields: Any) -> Self:
        self._requests.put_nowait(StreamingPullRequest(**fields))
        return self

    def half_close(self) -> None:
        self._requests.put_nowait(None)

    async def ended(self) -> Exception | None:
        """Waits for the end; gives the error, or None after a clean one or our own `close`."""
        async with timeout(SECONDS):
            await asyncio.wait({self._reading})
        return self.error

    async def until(self, count: int) -> list[ReceivedMessage]:
        """Waits until `count` messages have come in all; raises what ends the stream before."""
        async with timeout(SECONDS):
            while len(self.received) < count:
                if self.error:
                    raise self.error
                self._changed.clear()
                await self._changed.wait()
        return self.received

    async def _read(self, subscriber: SubscriberAsyncClient) -> None:
        try:
            responses = await subscriber.streaming_pull(requests=self._sent(), retry=None)
            async for response in responses:
                self.received += response.received_messages
                self.answers.append(len(response.received_messages))
                self._changed.set()
        except Exception as error:  # noqa: BLE001 - which one it is, the test says
            self.error = error
            self._changed.set()

    async def _sent(self) -> AsyncIterator[StreamingPullRequest]:
        while (request := await self._requests.get()) is not None:
            yield request


@asynccontextmanager
async def clients(host: str, project: str) -> AsyncIterator[Clients]:
    async with grpc.aio.insecure_channel(host, options=OPTIONS) as channel:
        yield Clients(project, channel)
