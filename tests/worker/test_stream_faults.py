"""Whatever fails in a call to Pub/Sub costs a worker its stream at most, never a loop or a job."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.auth.exceptions import RefreshError, TransportError
from structlog.testing import capture_logs

from engine.errors import BrokerUnavailable
from ops.waiting import until
from tests.support.worker_harness import Worker
from tests.worker.subscription_harness import (
    SUB,
    SubscriptionHarness,
    counted,
    ids,
    ledger,
    opened,
    source_of,
)

FAULTS = [
    RefreshError("invalid_grant"),  # type: ignore[no-untyped-call]
    TransportError("no metadata server"),  # type: ignore[no-untyped-call]
    grpc.aio.UsageError("the channel is closed"),
    grpc.aio.InternalError("core"),
    asyncio.InvalidStateError("not finished"),
    OSError(24, "Too many open files"),
    ValueError("a response that is no protobuf"),
    asyncio.CancelledError(),
]


class FailingTransport:
    """Passes every call on, except that those of `method` raise `error`. `read` is that of an open stream.

    Without an error they answer None. `failed` counts them.
    """

    def __init__(self, transport: Any, error: BaseException | None) -> None:
        self._transport = transport
        self._error = error
        self.methods: set[str] = set()
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._transport, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            return self._fail() if name in self.methods else await whole(*arguments, **named)

        return call

    def streaming_pull(self, *arguments: Any, **named: Any) -> Any:
        if "streaming_pull" in self.methods:
            return self._fail()
        call = self._transport.streaming_pull(*arguments, **named)
        whole = call.read

        async def read() -> Any:
            return self._fail() if "read" in self.methods else await whole()

        call.read = read
        return call

    def _fail(self) -> None:
        self.failed += 1
        if self._error is not None:
            raise self._error


def break_transport(worker: Worker, error: BaseException | None) -> FailingTransport:
    source = source_of(worker)
    source._transport = source._acks._transport = broken = FailingTransport(source._transport, error)
    return broken


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
async def test_whatever_a_stream_cannot_be_opened_for_is_told_once_and_tried_again_behind_a_breaker(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("engine.pubsub.breaker.MAX_SECONDS", 0.2)
    monkeypatch.setattr("worker.stream_health.LOST_SECONDS", 0.3)
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            await opened(subscription_harness)
            broken = break_transport(worker, error)
            broken.methods.add("streaming_pull")
            subscription_harness.fake.cut_streams(SUB)
            await until(lambda: broken.failed >= 5)
            with pytest.raises(BrokerUnavailable):
                await source_of(worker).ready()
            lost = await subscription_harness.published(2)
            await subscription_harness.harness.ended(*ids(lost))
            broken.methods.clear()
            await opened(subscription_harness, 2)
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await until(lambda: source_of(worker)._health._breaker.closed)
    assert ran == dict.fromkeys(ids(lost + wake_ups), 1)
    events = [line["event"] for line in logs]
    assert (events.count("stream.lost"), events.count("stream.found"), events.count("loop.failed")) == (
        1,
        1,
        0,
    )


@pytest.mark.parametrize("error", [*FAULTS, None], ids=lambda error: type(error).__name__)
async def test_whatever_fails_a_read_loses_the_stream_and_not_its_messages(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    for name in ("engine.pubsub.breaker.MAX_SECONDS", "worker.stream.CLOSE_SECONDS"):
        monkeypatch.setattr(name, 0.1)
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            await opened(subscription_harness)
            broken = break_transport(worker, error)
            broken.methods.add("read")
            subscription_harness.fake.cut_streams(SUB)
            await until(lambda: broken.failed >= 4)
            lost = await subscription_harness.published(2)
            await subscription_harness.harness.ended(*ids(lost))
            broken.methods.clear()
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
    assert ran == dict.fromkeys(ids(lost + wake_ups), 1)
    assert "loop.failed" not in [line["event"] for line in logs]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
async def test_whatever_fails_an_acknowledgement_is_told_once_and_stops_nothing(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("worker.acknowledgements.ACK_PAUSES", (0.01, 0.01))
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            await opened(subscription_harness)
            broken = break_transport(worker, error)
            broken.methods |= {"acknowledge", "modify_ack_deadline"}
            refused = counted("messages_unacknowledged")
            wake_ups = await subscription_harness.published(2)
            await subscription_harness.harness.ended(*ids(wake_ups))
            await until(lambda: counted("messages_unacknowledged") == refused + 2)
            await source_of(worker)._acks.release(["unknown"])
            broken.methods.clear()
            subscription_harness.redeliver()
            await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    events = [line["event"] for line in logs]
    assert (events.count("messages.not_settled"), events.count("loop.failed")) == (1, 0)
