"""What a lost stream takes with it, or a message that never comes, costs a job a moment, and no more."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import pytest
from google.pubsub_v1.types import DeleteSubscriptionRequest, Subscription
from structlog.testing import capture_logs

from engine.model import Attempt, Job
from engine.pipeline import Run
from engine.pubsub.client import EMULATOR
from ops.harness.pubsub_fake import FakePubSub, Stall
from ops.waiting import until
from tests.support.pubsub_brokers import BrokerAt
from tests.support.tcp_proxy import tcp_proxy
from tests.support.transport_harness import TransportHarness, open_system
from tests.support.worker_harness import WorkerHarness, preset
from tests.worker.subscription_harness import (
    SUB,
    SubscriptionHarness,
    counted,
    ids,
    ledger,
    messages,
    opened,
    source_of,
)
from worker.source import PUBLISHED_SECONDS

PATIENCE = timedelta(seconds=PUBLISHED_SECONDS / 2)
"""Half of what a job waits for its message, so that a slow machine does not fail the test."""


async def longest_wait(harness: WorkerHarness, *job_ids: UUID) -> timedelta:
    views = await harness.ended(*job_ids)
    return max((view.started_at or view.created_at) - view.created_at for view in views)


@pytest.mark.parametrize("loss", ["cut", "closed", "cancelled"])
async def test_jobs_whose_messages_went_to_a_lost_stream_start_at_once(
    subscription_harness: SubscriptionHarness, loss: str
) -> None:
    ran, work = ledger()
    async with subscription_harness.worker(work) as worker:
        await opened(subscription_harness)
        if loss == "cut":
            subscription_harness.fake.cut_streams(SUB)
        elif loss == "closed":
            for receiver in subscription_harness.subscription.receivers:
                receiver.close()
        else:
            stream = source_of(worker)._stream
            assert stream
            stream._call.cancel()
        await opened(subscription_harness, 2)
        wake_ups = await subscription_harness.published(3, sent=False)
        assert await longest_wait(subscription_harness.harness, *ids(wake_ups)) < PATIENCE
        later = await subscription_harness.published(sent=False)
        assert await longest_wait(subscription_harness.harness, *ids(later)) < PATIENCE
    assert ran == dict.fromkeys(ids(wake_ups + later), 1)


async def test_a_job_whose_message_is_lost_starts_although_its_subscription_is_busy(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.source.PUBLISHED_SECONDS", 0.5)
    monkeypatch.setattr("worker.source.BUSY_SCAN_SECONDS", 0.2)
    ran, work = ledger()
    async with subscription_harness.worker(work, slots=2) as worker:
        source = source_of(worker)
        sending = asyncio.create_task(keep_busy(subscription_harness, lambda: len(source._at_hand)))
        try:
            await until(lambda: source._at_hand)
            [lost] = await subscription_harness.published(sent=False)
            await subscription_harness.harness.ended(lost.job_id)
            # Its message comes after all: it is late.
            late = messages()["late"]
            subscription_harness.send(lost.message.data)
            await until(lambda: messages()["late"] > late)
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
    assert ran == {lost.job_id: 1}


async def keep_busy(subscription_harness: SubscriptionHarness, at_hand: Callable[[], int]) -> None:
    """Messages of no job, so many that some are always at hand: they cost the worker a claim each."""
    while True:
        if at_hand() < 2:
            for _ in range(4):
                subscription_harness.send(b'{"job_id": "01990000-0000-7000-8000-000000000000"}')
        await asyncio.sleep(0.001)


@pytest.mark.alone
async def test_a_backlog_older_than_the_fallbacks_patience_is_claimed_by_its_messages(
    subscription_harness: SubscriptionHarness,
) -> None:
    before, delivered, ran = messages(), asyncio.Event(), Counter[UUID]()

    @preset()
    async def work(job: Job, _run: Run) -> None:
        # Before the first message is there, scans alone could claim the backlog.
        await delivered.wait()
        ran[job.id] += 1

    wake_ups = await subscription_harness.published(200)
    await subscription_harness.age("published_at", 11, *wake_ups)
    async with subscription_harness.worker(work, slots=4) as worker:
        source = source_of(worker)
        await until(lambda: source._at_hand)
        delivered.set()
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert (messages() - before)["claimed"] > len(wake_ups) / 50


async def test_a_stream_that_was_lost_is_not_called_stalled_for_what_it_took_along(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.stream_health.SILENT_SECONDS", 0.2)
    stalls, (ran, work) = counted("stream_stalls"), ledger()
    async with subscription_harness.worker(work):
        await opened(subscription_harness)
        subscription_harness.fake.inject(Stall(on=SUB))
        wake_ups = await subscription_harness.published(3)
        subscription_harness.fake.cut_streams(SUB)
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert counted("stream_stalls") == stalls
    assert subscription_harness.fake.calls["StreamingPull"] == 2
    assert ran == dict.fromkeys(ids(wake_ups), 1)


async def no_claim(_room: int) -> list[Attempt]:
    return []


async def test_a_worker_that_holds_has_no_stream_and_opens_one_when_it_claims_again(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work, lease=60) as worker:
            await opened(subscription_harness)
            monkeypatch.setattr(worker.consumer, "_claim", no_claim)
            claims = worker.consumer._slots.unacknowledged
            await until(lambda: claims.ended == claims.begun)
            await source_of(worker).hold()
            await until(lambda: subscription_harness.fake.streams(SUB) == 0)
            wake_ups = await subscription_harness.published(3)
            await source_of(worker).hold()
            assert subscription_harness.fake.streams(SUB) == 0
            assert len(subscription_harness.subscription.backlog) == 3
            monkeypatch.undo()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert [line for line in logs if line["event"].startswith("stream.")] == []


async def test_what_a_held_worker_had_already_been_sent_is_given_back(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, work = ledger()
    async with subscription_harness.worker(work, slots=3, lease=60) as worker:
        await opened(subscription_harness)
        monkeypatch.setattr(worker.consumer, "_claim", no_claim)
        claims = worker.consumer._slots.unacknowledged
        await until(lambda: claims.ended == claims.begun)
        await subscription_harness.published(3)
        await until(lambda: len(subscription_harness.subscription.outstanding) == 3)
        await source_of(worker).hold()
        await until(lambda: len(subscription_harness.fake.nacked(SUB)) == 3)
        assert not subscription_harness.subscription.outstanding


async def test_a_subscription_that_is_deleted_and_made_again_brings_messages_again(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.05)
    ran, work = ledger()
    settings = Subscription.pb()()
    settings.CopyFrom(subscription_harness.subscription.settings)
    broker = subscription_harness.fake.broker
    async with subscription_harness.worker(work):
        await opened(subscription_harness)
        gone = await subscription_harness.published(sent=False)
        broker.delete_subscription(DeleteSubscriptionRequest.pb()(subscription=settings.name))
        assert await longest_wait(subscription_harness.harness, *ids(gone)) < PATIENCE
        broker.create_subscription(settings)
        await opened(subscription_harness, 2)
        wake_ups = await subscription_harness.published()
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(gone + wake_ups), 1)


@pytest.mark.long
async def test_a_broker_that_ends_each_connection_after_seconds_delays_no_job(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, ages = 40, [("grpc.max_connection_age_ms", 5_000), ("grpc.max_connection_age_grace_ms", 1_000)]
    ran, work = ledger()
    async with FakePubSub(options=ages) as fake:
        monkeypatch.setenv(EMULATOR, fake.host)
        async with (
            open_system(harness, BrokerAt(fake.host, "test-ages", "fake")) as system,
            system.maintenance(),
            system.worker(work),
        ):
            job_ids = await flow(system, seconds)
            longest = await longest_wait(harness, *job_ids)
        streams = fake.calls["StreamingPull"]
    print(f"{len(job_ids)} jobs, {streams} streams, the longest wait {longest.total_seconds():.3f} s")
    assert longest < timedelta(seconds=2)
    assert 3 <= streams <= seconds
    assert ran == dict.fromkeys(job_ids, 1)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["cut", "forgotten"])
async def test_a_worker_whose_connection_is_lost_runs_its_jobs_and_finds_the_broker_again(
    harness: WorkerHarness, broker: BrokerAt, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    ran, work = ledger()
    async with tcp_proxy(int(broker.host.rpartition(":")[2])) as proxy:
        monkeypatch.setenv(EMULATOR, broker.host)
        async with open_system(harness, broker) as system, system.maintenance():
            monkeypatch.setenv(EMULATOR, proxy.host)
            async with system.worker(work):
                before = await flow(system, 3)
                proxy.cut() if loss == "cut" else proxy.forget()
                during = await flow(system, 20)
                after = await flow(system, 5)
                waits = [await longest_wait(harness, *some) for some in (before, during, after)]
    print(broker.kind, loss, *(f"{each.total_seconds():.3f} s" for each in waits))
    assert ran == dict.fromkeys(before + during + after, 1)
    # A silent connection is only noticed by the jobs that wait.
    assert waits[1] < timedelta(seconds=2 if loss == "cut" else PUBLISHED_SECONDS + 3)
    assert waits[2] < timedelta(seconds=2)


async def flow(system: TransportHarness, seconds: float) -> list[UUID]:
    """Twenty jobs a second."""
    end, job_ids = time.monotonic() + seconds, []
    while time.monotonic() < end:
        job_ids.append(await system.enqueue())
        await asyncio.sleep(0.05)
    return job_ids
