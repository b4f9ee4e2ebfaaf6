"""Creates, updates or only compares the topics and subscriptions. The relay itself never does."""

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
"""How long a call is tried again while its fault may pass."""
MIN_PAUSE_SECONDS: Final = 0.1
ROUNDS: Final = 5
"""How often a race with another provisioner is run again."""
SERVICE: Final = "pubsub.googleapis.com"


def address() -> str:
    """Who is talked to: an emulator's address, or the service's name."""
    return os.environ.get(EMULATOR) or SERVICE


class BrokerError(OutriderError):
    """Pub/Sub did not answer, or refused: what was `found`, and how to `fix` it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found}: {fix}")
        self.found = found
        self.fix = fix


class Clients(NamedTuple):
    publisher: PublisherAsyncClient
    subscriber: SubscriberAsyncClient


@asynccontextmanager
async def open_clients() -> AsyncIterator[Clients]:
    """As `engine.pubsub.client` opens each."""
    async with open_publisher() as publisher, open_subscriber() as subscriber:
        yield Clients(publisher, subscriber)


async def examine(clients: Clients, names: Names) -> list[Change]:
    """What `provision` would do. Raises BrokerError."""
    topics = [each for each in names if await _found(clients.publisher.get_topic, topic=each)]
    get = clients.subscriber.get_subscription
    found = [await _found(get, subscription=each.name) for each in desired(names)]
    return compare(names, topics, [each for each in found if each])


async def provision(clients: Clients, names: Names) -> AsyncIterator[Change]:
    """Make or fix; gives each change once it is made, and at the end those that are left to be made by hand.

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
    raise BrokerError("somebody else keeps changing the topics and subscriptions", "provision again")


async def _made(clients: Clients, names: Names, change: Change) -> bool:
    """Take the step; False where somebody else was quicker."""
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
    except NotFound as error:  # the project
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
    """Raises BrokerError; NotFound and AlreadyExists are for the caller to judge."""
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
    """As engine.pubsub.client judges, of an error that the client has wrapped."""
    return FAULTS.get(error.grpc_status_code or grpc.StatusCode.UNKNOWN, Fault.PASSING)


def _explained(error: GoogleAPICallError) -> BrokerError:
    if _fault(error) is Fault.PASSING:
        reachable, running = "see that it can be reached", f"see that {EMULATOR} names a running emulator"
        fix = reachable if address() == SERVICE else running
        return BrokerError(f"Pub/Sub at {address()} does not answer: {error.message}", fix)
    if isinstance(error, NotFound):
        return BrokerError(error.message, "see that OUTRIDER_PUBSUB_PROJECT names an existing project")
    if _fault(error) is Fault.MISCONFIGURED:
        return BrokerError(error.message, "give this account the role roles/pubsub.editor in the project")
    return BrokerError(f"Pub/Sub refused: {error.message}", "see the message")
