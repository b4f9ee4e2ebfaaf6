"""Creates, updates or only compares the topics and subscriptions. A running relay never changes them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.api_core.exceptions import AlreadyExists, GoogleAPICallError, NotFound
from google.pubsub_v1.services.publisher import PublisherAsyncClient
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient

from engine.errors import OutriderError
from engine.pubsub.client import EMULATOR, FAULTS, Fault, Names, open_publisher, open_subscriber
from relay.provision.desired import Change, Step, compare, desired

T = TypeVar("T")

CALL_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 5.0
"""How long a call is tried again while its fault is a passing one."""
MIN_PAUSE_SECONDS: Final = 0.1
ROUNDS: Final = 5
"""How many times provisioning starts again when another process provisions at the same time."""
SERVICE: Final = "pubsub.googleapis.com"


def address() -> str:
    """The broker: the emulator's address, or the service's name."""
    return os.environ.get(EMULATOR) or SERVICE


class BrokerError(OutriderError):
    """Pub/Sub did not answer, or refused a call. `found` says what happened, and `fix` what to do."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found}: {fix}")
        self.found = found
        self.fix = fix


class Clients(NamedTuple):
    publisher: PublisherAsyncClient
    subscriber: SubscriberAsyncClient


@asynccontextmanager
async def open_clients() -> AsyncIterator[Clients]:
    """Both clients, as `engine.pubsub.client` opens them."""
    async with open_publisher() as publisher, open_subscriber() as subscriber:
        yield Clients(publisher, subscriber)


async def examine(clients: Clients, names: Names) -> list[Change]:
    """The changes that `provision` would make. Raises BrokerError."""
    topics = [each for each in names if await _found(clients.publisher.get_topic, topic=each)]
    get = clients.subscriber.get_subscription
    found = [await _found(get, subscription=each.name) for each in desired(names)]
    return compare(names, topics, [each for each in found if each])


async def provision(clients: Clients, names: Names) -> AsyncIterator[Change]:
    """Create or fix the resources. Yields each change once it is made, and last the changes to make by hand.

    Raises BrokerError.
    """
    pause = MIN_PAUSE_SECONDS
    for _ in range(ROUNDS):
        changes = await examine(clients, names)
        outrun = False
        for change in changes:
            if change.step is Step.BY_HAND:
                continue
            if await _made(clients, names, change):
                yield change
            else:
                outrun = True
        if not outrun:
            for change in changes:
                if change.step is Step.BY_HAND:
                    yield change
            return
        await asyncio.sleep(pause)
        pause *= 2
    raise BrokerError(
        "another process keeps changing the topics and subscriptions", "run `outrider provision` again"
    )


async def _made(clients: Clients, names: Names, change: Change) -> bool:
    """Make the change. False if another process was faster."""
    try:
        if change.kind == "topic":
            await _create_topic(clients.publisher, change.resource)
        else:
            await _fix(clients.subscriber, names, change)
    except (AlreadyExists, NotFound):
        return False
    return True


async def _create_topic(publisher: PublisherAsyncClient, topic: str) -> None:
    try:
        await _call(publisher.create_topic, name=topic)
    except NotFound as error:  # the project does not exist
        raise _explained(error) from error


async def _fix(subscriber: SubscriberAsyncClient, names: Names, change: Change) -> None:
    [wanted] = [each for each in desired(names) if each.name == change.resource]
    if change.step is Step.UPDATE:
        update = {"subscription": wanted, "update_mask": {"paths": change.fields}}
        await _call(subscriber.update_subscription, request=update)
        return
    if change.step is Step.RECREATE:
        await _call(subscriber.delete_subscription, subscription=wanted.name)
    await _call(subscriber.create_subscription, request=wanted)


async def _found(get: Callable[..., Awaitable[T]], **name: str) -> T | None:
    try:
        return await _call(get, **name)
    except NotFound:
        return None


async def _call(method: Callable[..., Awaitable[T]], **arguments: Any) -> T:
    """Call `method`, and again while its fault is a passing one. Raises BrokerError, NotFound or AlreadyExists."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = MIN_PAUSE_SECONDS
    while True:
        try:
            return await method(**arguments, retry=None, timeout=CALL_SECONDS)
        except (NotFound, AlreadyExists):
            raise
        except GoogleAPICallError as error:
            if _fault(error) is not Fault.PASSING or time.monotonic() + pause > deadline:
                raise _explained(error) from error
        await asyncio.sleep(pause)
        pause *= 2


def _fault(error: GoogleAPICallError) -> Fault:
    """The fault, as in engine.pubsub.client, of an error that the client has wrapped."""
    return FAULTS.get(error.grpc_status_code or grpc.StatusCode.UNKNOWN, Fault.PASSING)


def _explained(error: GoogleAPICallError) -> BrokerError:
    if _fault(error) is Fault.PASSING:
        reachable = "check the network connection to Pub/Sub"
        running = f"check that {EMULATOR} names a running emulator"
        fix = reachable if address() == SERVICE else running
        return BrokerError(f"Pub/Sub at {address()} does not answer: {error.message}", fix)
    if isinstance(error, NotFound):
        return BrokerError(error.message, "check that OUTRIDER_PUBSUB_PROJECT names an existing project")
    if _fault(error) is Fault.MISCONFIGURED:
        return BrokerError(error.message, "give this account the role roles/pubsub.editor in the project")
    return BrokerError(f"Pub/Sub refused the request: {error.message}", "see the message")
