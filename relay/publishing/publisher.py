"""Sends a relay's messages to Pub/Sub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Protocol

from google.protobuf.message import Error as ProtobufError
from google.pubsub_v1.types import PublishRequest, PubsubMessage

from engine.pubsub.client import open_publisher, routed
from engine.pubsub.messages import Message
from relay.publishing.answers import Unsendable
from relay.publishing.request_size import SMALL_BYTES, allowed_seconds

FOR_GOOGLE: Final = "googclient_traceparent"
"""The attribute in which Google's own clients look for the trace of a message."""
CONNECTIONS: Final = 5
"""One for the small messages of each topic, and one for the large ones of results and of dead letters: what waits in
the buffers of a slow line delays no small message."""

RawRequest: Final = PublishRequest.pb()
RawMessage: Final = PubsubMessage.pb()


class Publisher(Protocol):
    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Publish all `messages` in one request. The broker may have taken them even if this raises.

        Raises Unsendable for a message that cannot be encoded, grpc.RpcError, or what lies below (relay's answers).
        """


@dataclass(slots=True)
class _Line:
    """A connection, and how many bytes are on their way there."""

    send: Any
    bytes: int = 0


class PubSubPublisher:
    """Sends raw protobuf to the client's transport: 4.6 times the threaded client's throughput at 1/6 of its CPU."""

    def __init__(self, *sends: Any) -> None:
        self._sends = cycle(sends)
        self._lines: dict[tuple[str, bool], _Line] = {}

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        request = RawRequest(topic=topic, messages=[_raw(message) for message in messages])
        size = request.ByteSize()
        line = self._line(topic, large=any(len(message.data) > SMALL_BYTES for message in messages))
        line.bytes += size
        try:
            await line.send(request, timeout=allowed_seconds(line.bytes), metadata=routed(topic, "topic"))
        finally:
            line.bytes -= size

    def _line(self, topic: str, *, large: bool) -> _Line:
        if (topic, large) not in self._lines:
            self._lines[topic, large] = _Line(next(self._sends))
        return self._lines[topic, large]


def _raw(message: Message) -> Any:
    """Raises Unsendable: SQL may have written anything that is JSON as attributes."""
    try:
        return RawMessage(data=message.data, attributes=_traced(message.attributes))
    except (TypeError, ValueError, AttributeError, ProtobufError) as error:
        raise Unsendable(f"{type(error).__name__}: {error}") from error


def _traced(attributes: Mapping[str, str]) -> Mapping[str, str]:
    context = attributes.get("traceparent")
    return attributes if context is None else {**attributes, FOR_GOOGLE: context}


@asynccontextmanager
async def connected() -> AsyncIterator[PubSubPublisher]:
    """A publisher to the emulator or the service (see engine.pubsub.client)."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_publisher()) for _ in range(CONNECTIONS)]
        yield PubSubPublisher(*(client.transport.publish for client in clients))
