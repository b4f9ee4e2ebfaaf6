"""Google Pub/Sub as both of its users see it: names, connections, and what an error means.

The official asyncio clients, called at their transports with raw protobuf and without their own retries: a default
publish retry (60 s) doubles messages after a lost reply and hides the attempts from the breaker.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, Final, NamedTuple

import google.auth
import grpc
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1.services.publisher import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from engine.errors import ConfigurationError
from engine.settings import PREFIX, Settings

EMULATOR: Final = "PUBSUB_EMULATOR_HOST"
OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
Metadata = tuple[tuple[str, str], ...]


class Names(NamedTuple):
    """The three topics, each by its full resource name."""

    jobs: str
    results: str
    dead_letters: str

    @staticmethod
    def subscription(topic: str) -> str:
        """The full name of the topic's own subscription."""
        return topic.replace("/topics/", "/subscriptions/") + "-sub"


def names(settings: Settings) -> Names:
    """Raises ConfigurationError when no project is set."""
    project = settings.pubsub_project
    if project is None:
        raise ConfigurationError([f"{PREFIX}PUBSUB_PROJECT is not set"])
    topics = (settings.pubsub_jobs_topic, settings.pubsub_results_topic, settings.pubsub_dlq_topic)
    return Names(*(f"projects/{project}/topics/{topic}" for topic in topics))


def routed(resource: str, name: str) -> Metadata:
    """The header by which Google's front end routes a call: the clients' methods add it, their transports do not."""
    return (("x-goog-request-params", f"{name}={resource}"),)


class Fault(Enum):
    """What to do about a failed call."""

    PASSING = "passing"
    """The broker is away, busy or slow: try again, behind a breaker."""
    MISCONFIGURED = "misconfigured"
    """The resource or the right to it is missing: somebody has to fix that."""
    REFUSED = "refused"
    """The request itself is at fault, and will be next time."""


FAULTS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Fault.REFUSED,
    grpc.StatusCode.NOT_FOUND: Fault.MISCONFIGURED,
    grpc.StatusCode.PERMISSION_DENIED: Fault.MISCONFIGURED,
    grpc.StatusCode.UNAUTHENTICATED: Fault.MISCONFIGURED,
    grpc.StatusCode.FAILED_PRECONDITION: Fault.MISCONFIGURED,
}


def fault(error: grpc.RpcError) -> Fault:
    """What a failed call means; a code that is not known to be permanent is taken for passing."""
    return FAULTS.get(code(error), Fault.PASSING)


def code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN


def details(error: grpc.RpcError) -> str:
    """What the broker says of a failed call, in one line that is not too long."""
    told = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return " ".join((told or "").split())[:500]


@asynccontextmanager
async def open_publisher() -> AsyncIterator[PublisherAsyncClient]:
    """A client of the emulator that PUBSUB_EMULATOR_HOST names, else of the service by the default credentials.

    Raises ConfigurationError when there are no credentials. It connects when first used.
    """
    async with _channel(PublisherGrpcAsyncIOTransport) as channel:
        yield PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))


@asynccontextmanager
async def open_subscriber() -> AsyncIterator[SubscriberAsyncClient]:
    """As `open_publisher`."""
    async with _channel(SubscriberGrpcAsyncIOTransport) as channel:
        yield SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))


@asynccontextmanager
async def _channel(transport: Any) -> AsyncIterator[grpc.aio.Channel]:
    emulator = os.environ.get(EMULATOR)
    if emulator:
        channel = grpc.aio.insecure_channel(emulator, options=OPTIONS)
    else:
        try:  # in a thread: looking for credentials reads files and may ask a metadata server
            credentials, _ = await asyncio.to_thread(google.auth.default, scopes=transport.AUTH_SCOPES)
        except GoogleAuthError as error:
            raise ConfigurationError([f"no credentials for Pub/Sub: {error}"]) from error
        channel = transport.create_channel(transport.DEFAULT_HOST, credentials=credentials, options=OPTIONS)
    async with channel:
        yield channel
