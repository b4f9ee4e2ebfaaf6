"""Google Pub/Sub for relays and workers: names, connections, and the meaning of errors.

The official asyncio clients are called at their transports, with raw protobuf and without their own retries: the
default publish retry (60 s) doubles messages after a lost reply and hides the attempts from the breaker.
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
    # gRPC's servers end a connection that pings more often than every five minutes, unless they send data meanwhile. A
    # dead connection is found earlier: with keep-alive gRPC sets TCP_USER_TIMEOUT to its time-out of 20 s, a stream
    # writes every 25 s, and every other call has a deadline.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A connection without calls is closed. Firewalls and load balancers forget idle connections without a word, and
    # the first call after that would wait for its deadline.
    ("grpc.client_idle_timeout_ms", 60_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Else clients with the same options share one connection, and wait for each other on a slow line.
    ("grpc.use_local_subchannel_pool", 1),
)
PROVISION: Final = "run `outrider provision`, and check the process's Pub/Sub permissions"
"""What to do about Fault.MISCONFIGURED."""
PUBLISH_PING_MS: Final = 60_000
"""A publish is answered within two minutes or given up, and each answer ends a server's count of pings: of these, no
server forbids two. A publisher has no stream that notices a connection on which nothing passes any more."""
Metadata = tuple[tuple[str, str], ...]


class Names(NamedTuple):
    """The full resource names of the three topics."""

    jobs: str
    results: str
    dead_letters: str

    @staticmethod
    def subscription(topic: str) -> str:
        """The full name of the topic's own subscription."""
        return topic.replace("/topics/", "/subscriptions/") + "-sub"


def names(settings: Settings) -> Names:
    """The names of the topics. Raises ConfigurationError if no project is set."""
    project = settings.pubsub_project
    if project is None:
        raise ConfigurationError([f"{PREFIX}PUBSUB_PROJECT is not set"])
    topics = (settings.pubsub_jobs_topic, settings.pubsub_results_topic, settings.pubsub_dlq_topic)
    return Names(*(f"projects/{project}/topics/{topic}" for topic in topics))


def routed(resource: str, name: str) -> Metadata:
    """The header by which Google's front end routes a call. The clients' methods add it; their transports do not."""
    return (("x-goog-request-params", f"{name}={resource}"),)


class Fault(Enum):
    """The kind of a failed call, which decides what to do."""

    PASSING = "passing"
    """The broker is away, busy or slow: try again, behind a breaker."""
    MISCONFIGURED = "misconfigured"
    """The resource or the permission is missing: an operator has to fix that."""
    REFUSED = "refused"
    """The request itself is at fault, and would fail again."""


FAULTS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Fault.REFUSED,
    grpc.StatusCode.NOT_FOUND: Fault.MISCONFIGURED,
    grpc.StatusCode.PERMISSION_DENIED: Fault.MISCONFIGURED,
    grpc.StatusCode.UNAUTHENTICATED: Fault.MISCONFIGURED,
    grpc.StatusCode.FAILED_PRECONDITION: Fault.MISCONFIGURED,
}


def fault(error: BaseException) -> Fault:
    """The kind of a failed call. An error that is not known to be permanent counts as passing."""
    return FAULTS.get(code(error), Fault.PASSING)


def code(error: BaseException) -> grpc.StatusCode:
    """The status of a failed call. UNKNOWN if it failed before the broker, say for its credentials or in gRPC."""
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN


def details(error: BaseException) -> str:
    """The broker's message for a failed call, else the error's own, in one line of at most 500 characters."""
    text = error.details() if isinstance(error, grpc.aio.AioRpcError) else f"{type(error).__name__}: {error}"
    return " ".join((text or "").split())[:500]


@asynccontextmanager
async def open_publisher() -> AsyncIterator[PublisherAsyncClient]:
    """A client of the emulator that PUBSUB_EMULATOR_HOST names, else of the service by the default credentials.

    Raises ConfigurationError if there are no credentials. The client connects at its first use.
    """
    async with _channel(PublisherGrpcAsyncIOTransport, PUBLISH_PING_MS) as channel:
        yield PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))


@asynccontextmanager
async def open_subscriber() -> AsyncIterator[SubscriberAsyncClient]:
    """As `open_publisher`."""
    async with _channel(SubscriberGrpcAsyncIOTransport) as channel:
        yield SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))


@asynccontextmanager
async def _channel(transport: Any, ping_ms: int | None = None) -> AsyncIterator[grpc.aio.Channel]:
    emulator = os.environ.get(EMULATOR)
    pings = {} if ping_ms is None else {"grpc.keepalive_time_ms": ping_ms}
    options = tuple((dict(OPTIONS) | pings).items())
    if emulator:
        channel = grpc.aio.insecure_channel(emulator, options=options)
    else:
        # In a thread, because the search for credentials reads files and may ask a metadata server.
        try:
            credentials, _ = await asyncio.to_thread(google.auth.default, scopes=transport.AUTH_SCOPES)
        except GoogleAuthError as error:
            raise ConfigurationError([f"no credentials for Pub/Sub: {error}"]) from error
        channel = transport.create_channel(transport.DEFAULT_HOST, credentials=credentials, options=options)
    async with channel:
        yield channel
