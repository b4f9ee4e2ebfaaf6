"""What a publish loop does about its breaker, request by request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import pytest

from engine.pubsub.messages import Message
from ops.waiting import WAIT_SECONDS, until
from relay.publishing.publish_loop import IN_FLIGHT, PublishLoop
from tests.relay.relay_harness import metric


class Row(NamedTuple):
    message: Message

    @property
    def weight(self) -> int:
        return self.message.weight


class Endless:
    """A source that never runs out of rows."""

    def __init__(self) -> None:
        self.taken = 0
        self.released = 0

    async def take(self, _room: object) -> list[Row]:
        self.taken += 1
        return [Row(Message(b"{}", {}))]

    async def sent(self, items: Sequence[Row]) -> None: ...

    async def release(self, items: Sequence[Row]) -> None:
        self.released += len(items)

    async def set_back(self, item: Row, reason: str, cause: object, pause: float) -> None: ...

    async def refuse(self, item: Row, reason: str) -> None: ...

    async def aclose(self) -> None: ...


class Broker:
    """Answers each request when and as the test says."""

    def __init__(self) -> None:
        self.requests: list[asyncio.Future[None]] = []

    async def publish(self, _topic: str, _messages: Sequence[Message]) -> None:
        self.requests.append(asyncio.Future())
        await self.requests[-1]

    def fail(self, request: asyncio.Future[None]) -> None:
        nothing = grpc.aio.Metadata()
        request.set_exception(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "away"))


@dataclass
class Publishing:
    rows: Endless
    broker: Broker
    loop: PublishLoop[Row]
    stop: asyncio.Event

    async def has_asked(self, requests: int) -> None:
        """Wait for so many requests, and until the loop waits for something else."""
        await until(lambda: len(self.broker.requests) >= requests)
        await self.has_settled()

    async def has_settled(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0)


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    rows, broker = Endless(), Broker()
    loop: PublishLoop[Row] = PublishLoop("jobs", "projects/test/topics/t", rows, broker)
    made = Publishing(rows, broker, loop, asyncio.Event())
    task = asyncio.create_task(loop.run(made.stop))
    yield made
    made.stop.set()
    async with asyncio.timeout(WAIT_SECONDS):
        while not task.done():
            for request in made.broker.requests:
                if not request.done():
                    request.set_result(None)
            await asyncio.sleep(0)
    task.result()


async def test_no_rows_are_taken_when_the_breaker_has_opened_while_the_loop_waited_for_room(
    publishing: Publishing,
) -> None:
    """They would be reserved for ten seconds, for a broker that is away."""
    await publishing.has_asked(IN_FLIGHT)
    publishing.broker.fail(publishing.broker.requests[0])
    await publishing.has_settled()
    assert publishing.rows.taken == IN_FLIGHT


async def test_probes_go_one_at_a_time_and_a_success_ends_that(publishing: Publishing) -> None:
    await publishing.has_asked(IN_FLIGHT)
    for request in publishing.broker.requests:
        publishing.broker.fail(request)
    for probes in (1, 2):
        await publishing.has_asked(IN_FLIGHT + probes)
        assert (len(publishing.broker.requests), publishing.rows.taken) == (IN_FLIGHT + probes,) * 2
        if probes == 1:
            publishing.broker.fail(publishing.broker.requests[-1])
    publishing.broker.requests[-1].set_result(None)
    await publishing.has_asked(2 * IN_FLIGHT + 2)
    assert len(publishing.broker.requests) == 2 * IN_FLIGHT + 2


@pytest.mark.parametrize("probing", [False, True])
async def test_a_stop_waits_for_no_request_that_is_never_answered_and_releases_its_rows(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch, probing: bool
) -> None:
    monkeypatch.setattr("relay.publishing.publish_loop.STOP_SECONDS", 0.01)
    await publishing.has_asked(IN_FLIGHT)
    if probing:
        for request in publishing.broker.requests:
            publishing.broker.fail(request)
        await publishing.has_asked(IN_FLIGHT + 1)
    publishing.stop.set()
    await until(lambda: publishing.rows.released == (IN_FLIGHT + 1 if probing else IN_FLIGHT))


async def test_a_loop_that_waits_for_the_broker_looks_alive(publishing: Publishing) -> None:
    """A large request may take two minutes on a slow line, and no database is away."""
    await publishing.has_asked(IN_FLIGHT)
    cycled = metric("relay_cycled_timestamp_seconds", topic="jobs")
    await until(lambda: metric("relay_cycled_timestamp_seconds", topic="jobs") > cycled)
    assert publishing.loop.behind_seconds < WAIT_SECONDS
