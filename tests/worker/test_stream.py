"""A stream that breaks, dies or never opens costs time: jobs come by the next one, or by the outbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import pytest
from google.pubsub_v1.types import DeleteSubscriptionRequest
from structlog.testing import capture_logs

from engine.errors import BrokerUnavailable, DatabaseUnavailable
from engine.pubsub.messages import WakeUp
from ops.harness.pubsub_fake import Delay, Fail, Stall
from ops.waiting import until
from relay.provision.apply import open_clients, provision
from tests.support.database import fetchone
from tests.support.worker_harness import Worker, known, preset
from tests.worker.subscription_harness import SUB, SubscriptionHarness, counted, ids, ledger, source_of

Logs = list[Any]


def named(logs: Logs, *events: str) -> Logs:
    return [line for line in logs if line["event"] in events]


async def flowing(subscription_harness: SubscriptionHarness) -> None:
    await until(lambda: subscription_harness.fake.streams(SUB))


def flows(subscription_harness: SubscriptionHarness, opened: int) -> bool:
    """Whether the stream that was opened as the `opened`th is there."""
    return (
        subscription_harness.fake.streams(SUB) == 1
        and subscription_harness.fake.calls["StreamingPull"] == opened
    )


async def is_ready(worker: Worker) -> bool:
    try:
        await worker.consumer.ready()
    except (BrokerUnavailable, DatabaseUnavailable):
        return False
    return True


async def not_ready(worker: Worker) -> bool:
    return not await is_ready(worker)


async def test_a_stream_that_is_cut_is_opened_again(subscription_harness: SubscriptionHarness) -> None:
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            await flowing(subscription_harness)
            subscription_harness.fake.cut_streams(SUB)
            await until(lambda: subscription_harness.fake.calls["StreamingPull"] == 2)
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await until(lambda: source_of(worker)._health._breaker.closed)
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    lost, found = named(logs, "stream.lost", "stream.found")
    assert (lost["event"], lost["reason"], found["event"]) == ("stream.lost", "UNAVAILABLE", "stream.found")


async def test_streams_that_the_broker_ends_are_not_opened_without_a_pause(
    subscription_harness: SubscriptionHarness,
) -> None:
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            for opened in (1, 2, 3, 4):
                await until(partial(flows, subscription_harness, opened))
                for receiver in subscription_harness.subscription.receivers:
                    receiver.close()
                await until(lambda: source_of(worker)._health._breaker.pause)
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await until(lambda: source_of(worker)._health._breaker.closed)
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert [line["event"] for line in named(logs, "stream.lost", "stream.found")] == [
        "stream.lost",
        "stream.found",
    ]


async def test_a_broker_that_goes_and_comes_back_is_reported_once(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pubsub.breaker.MAX_SECONDS", 0.2)
    monkeypatch.setattr("worker.stream_health.LOST_SECONDS", 0.5)
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            await flowing(subscription_harness)
            await until(lambda: is_ready(worker))
            await subscription_harness.fake.stop()
            await until(lambda: not_ready(worker))
            await subscription_harness.fake.start()
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await until(lambda: is_ready(worker))
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert len(named(logs, "stream.lost", "stream.found")) == 2


async def test_a_missing_subscription_is_reported_once_probed_and_used_when_it_is_there(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.05)
    subscription_harness.fake.broker.delete_subscription(
        DeleteSubscriptionRequest.pb()(subscription=subscription_harness.subscription.name)
    )
    ran, work = ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work):
            await until(lambda: subscription_harness.fake.calls["StreamingPull"] >= 5)
            [lost] = named(logs, "stream.lost")
            async with open_clients() as clients:
                assert [change async for change in provision(clients, subscription_harness.system.names)]
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await until(lambda: len(named(logs, "stream.lost", "stream.found")) == 2)
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert lost["reason"] == "NOT_FOUND"
    assert "outrider provision" in lost["fix"]


async def test_a_subscription_that_stays_missing_is_probed_each_five_seconds(
    subscription_harness: SubscriptionHarness,
) -> None:
    subscription_harness.fake.inject(Fail(method="StreamingPull", code=grpc.StatusCode.PERMISSION_DENIED))
    _, work = ledger()
    async with subscription_harness.worker(work) as worker:
        await until(lambda: not source_of(worker)._health._breaker.closed)
        assert 4 < source_of(worker)._health._breaker.pause <= 5


async def strand(subscription_harness: SubscriptionHarness) -> list[WakeUp]:
    """A job that was published 11 s ago, whose message the broker has."""
    wake_ups = await subscription_harness.published()
    await subscription_harness.age("published_at", 11, *wake_ups)
    return wake_ups


async def strand_until(
    subscription_harness: SubscriptionHarness, condition: Callable[[], Awaitable[bool]]
) -> list[WakeUp]:
    """Strand one job after the other, each when the one before has run, until `condition`."""
    stranded: list[WakeUp] = []

    async def look() -> bool:
        stranded.extend(await subscription_harness.published())
        await subscription_harness.harness.ended(*ids(stranded))
        return await condition()

    await until(look)
    return stranded


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("worker.stream_health.SILENT_SECONDS", 0.2),
        ("worker.source.PUBLISHED_SECONDS", 0.1),
        ("worker.source.SCAN_SECONDS", 0.05),
        ("worker.source.ASTRAY_SCAN_SECONDS", 0.05),
        ("worker.stream.CLOSE_SECONDS", 0.2),
        ("worker.consumer.MAX_IDLE_SECONDS", 0.05),
    ):
        monkeypatch.setattr(name, seconds)


@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_brings_nothing_while_published_jobs_grow_old_is_opened_again(
    subscription_harness: SubscriptionHarness,
) -> None:
    stalls, (ran, work) = counted("stream_stalls"), ledger()
    with capture_logs() as logs:
        async with subscription_harness.worker(work) as worker:
            await flowing(subscription_harness)
            subscription_harness.fake.inject(Stall(on=SUB))
            stranded = await strand_until(
                subscription_harness, lambda: known(subscription_harness.fake.calls["StreamingPull"] == 2)
            )
            wake_ups = await subscription_harness.published()
            await subscription_harness.harness.ended(*ids(wake_ups))
            await subscription_harness.settled()
            assert await is_ready(worker)
    assert ran == dict.fromkeys(ids(stranded + wake_ups), 1)
    assert counted("stream_stalls") == stalls + 1
    assert len(named(logs, "stream.stalled")) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_does_not_even_end_when_asked_to_is_replaced(
    subscription_harness: SubscriptionHarness,
) -> None:
    ran, work = ledger()
    subscription_harness.fake.inject(Delay(method="StreamingPull", seconds=60, times=1))
    async with subscription_harness.worker(work):
        await until(lambda: subscription_harness.fake.calls["StreamingPull"])
        stranded = await strand_until(
            subscription_harness, lambda: known(subscription_harness.fake.calls["StreamingPull"] == 2)
        )
        wake_ups = await subscription_harness.published()
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(stranded + wake_ups), 1)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_whose_streams_all_stall_is_not_ready_until_one_flows(
    subscription_harness: SubscriptionHarness,
) -> None:
    ran, work = ledger()
    async with subscription_harness.worker(work) as worker:
        await until(lambda: is_ready(worker))
        stall = subscription_harness.fake.inject(Stall(on=SUB, new_streams=True))
        stranded = await strand_until(subscription_harness, lambda: not_ready(worker))
        with pytest.raises(BrokerUnavailable, match="3 Pub/Sub streams"):
            await worker.consumer.ready()
        subscription_harness.fake.lift(stall)
        await until(lambda: is_ready(worker))
    assert ran == dict.fromkeys(ids(stranded), 1)


@pytest.mark.usefixtures("impatient")
async def test_an_idle_stream_is_no_stall(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.stream_health.SILENT_SECONDS", 0.0)
    stalls, (ran, work) = counted("stream_stalls"), ledger()
    async with subscription_harness.worker(work) as worker:
        await flowing(subscription_harness)
        claims = worker.consumer._slots.unacknowledged
        begun = claims.begun
        await until(lambda: claims.begun >= begun + 3)
        [job] = await subscription_harness.queued()
        await subscription_harness.age("ready_at", 6, job)
        await subscription_harness.harness.ended(job.job_id)
    assert ran == {job.job_id: 1}
    assert (counted("stream_stalls"), subscription_harness.fake.calls["StreamingPull"]) == (stalls, 1)


async def test_an_idle_worker_runs_what_is_stranded_and_nothing_younger(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.source.SCAN_SECONDS", 0.05)
    claims = {status: counted("fallback_claims", status=status) for status in ("ready", "published")}
    ran, work = ledger()
    published = await subscription_harness.published(2, sent=False)
    ready = await subscription_harness.queued(2)
    for column, (young, old), limit in (("published_at", published, 10), ("ready_at", ready, 5)):
        await subscription_harness.age(column, limit - 3, young)
        await subscription_harness.age(column, limit + 1, old)
    async with subscription_harness.worker(work):
        await subscription_harness.harness.ended(ready[1].job_id, published[1].job_id)
        assert ran == {ready[1].job_id: 1, published[1].job_id: 1}
        await subscription_harness.age("published_at", 3, published[0])
        await subscription_harness.age("ready_at", 3, ready[0])
        await subscription_harness.harness.ended(*ids(ready + published))
    assert ran == dict.fromkeys(ids(ready + published), 1)
    for status, before in claims.items():
        assert counted("fallback_claims", status=status) == before + 2


async def test_a_worker_without_a_free_slot_leaves_what_is_stranded_to_others(
    subscription_harness: SubscriptionHarness,
) -> None:
    ran, work = ledger()

    @preset("busy")
    async def busy(_job: Any, run: Any) -> None:
        await until(lambda: run.cancelled.is_set())

    running = await subscription_harness.harness.enqueue("busy")
    await subscription_harness.conn.execute("UPDATE outbox SET ready_at = ready_at - interval '6 s'")
    async with subscription_harness.worker(work, busy, slots=1):
        await subscription_harness.harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        [stranded] = await strand(subscription_harness)
        async with subscription_harness.worker(work):
            await subscription_harness.harness.ended(stranded.job_id)
        await subscription_harness.system.cancel(running)
        await subscription_harness.harness.ended(running)
    assert ran == {stranded.job_id: 1}
    assert await fetchone(subscription_harness.conn, "SELECT count(*) FROM outbox") == (0,)
