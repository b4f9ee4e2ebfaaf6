"""A message is settled once PostgreSQL knows what it says, and never before."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from functools import partial
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from ops.harness.pubsub_fake import Delay, DropAcks, Duplicate, Fail
from ops.waiting import until
from tests.conftest import Connect
from tests.support.database import fetchone
from tests.support.wire_proxy import wire_proxy
from tests.support.worker_harness import preset
from tests.worker.subscription_harness import (
    SUB,
    SubscriptionHarness,
    counted,
    ids,
    ledger,
    messages,
    source_of,
)

LEASED = "SELECT 1 FROM outbox WHERE status = 'leased' HAVING count(*) = %s"


def delivered(subscription_harness: SubscriptionHarness, messages: int) -> bool:
    return subscription_harness.subscription.delivered.total == messages


async def test_a_message_is_acknowledged_when_its_claim_has_committed_and_not_before(
    subscription_harness: SubscriptionHarness, connect: Connect
) -> None:
    ran, work = ledger()
    wake_ups = await subscription_harness.published()
    holder = await connect(autocommit=False)
    await holder.execute("SELECT 1 FROM outbox FOR UPDATE")
    async with subscription_harness.worker(work):
        waiting = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        await subscription_harness.harness.row(waiting, holder.info.backend_pid)
        assert len(subscription_harness.subscription.outstanding) == 1
        assert subscription_harness.fake.calls["Acknowledge"] == 0
        await holder.rollback()
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert (len(subscription_harness.fake.acked(SUB)), subscription_harness.fake.nacked(SUB)) == (1, [])


async def test_messages_that_come_twice_or_late_run_nothing_and_are_acknowledged(
    subscription_harness: SubscriptionHarness,
) -> None:
    before, (ran, work) = messages(), ledger()
    subscription_harness.fake.inject(Duplicate(on=SUB, times=1))
    twice, once, cancelled = wake_ups = await subscription_harness.published(3)
    [waiting] = await subscription_harness.queued()
    await subscription_harness.conn.execute(
        "UPDATE outbox SET status = 'waiting', run_at = now() + interval '1 h' WHERE job_id = %s",
        [waiting.job_id],
    )
    await subscription_harness.system.cancel(cancelled.job_id)
    async with subscription_harness.worker(work):
        await subscription_harness.harness.ended(*ids(wake_ups))
        unknown = json.dumps({"job_id": "01990000-0000-7000-8000-000000000000"}).encode()
        for data in (twice.message.data, waiting.message.data, unknown):
            subscription_harness.send(data)
        await until(lambda: messages()["late"] - before["late"] >= 5)
        await subscription_harness.settled()
    assert ran == {twice.job_id: 1, once.job_id: 1}
    assert messages() - before == {"claimed": 2, "late": 5}
    assert (len(subscription_harness.fake.acked(SUB)), subscription_harness.fake.nacked(SUB)) == (6, [])
    await subscription_harness.system.cancel(waiting.job_id)


async def test_an_acknowledgement_that_failed_is_sent_again(
    subscription_harness: SubscriptionHarness,
) -> None:
    before, (_, work) = messages(), ledger()
    subscription_harness.fake.inject(Fail(method="Acknowledge", times=1))
    async with subscription_harness.worker(work):
        await subscription_harness.harness.ended(*ids(await subscription_harness.published()))
        await subscription_harness.settled()
    assert messages() - before == {"claimed": 1}


async def test_a_message_that_cannot_be_acknowledged_comes_again_and_is_late(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.acknowledgements.ACK_PAUSES", (0.01, 0.01))
    before, refused, (ran, work) = messages(), counted("messages_unacknowledged"), ledger()
    subscription_harness.fake.inject(Fail(method="Acknowledge", times=2))
    wake_ups = await subscription_harness.published()
    async with subscription_harness.worker(work):
        await subscription_harness.harness.ended(*ids(wake_ups))
        await until(lambda: counted("messages_unacknowledged") == refused + 1)
        subscription_harness.redeliver()
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert messages() - before == {"claimed": 1, "late": 1}


@pytest.mark.parametrize(
    "data",
    [b"\xff\x00", b"[]", b'"x"', b'{"job_id": 5}', b'{"job_id": null}', b'{"job_id": "no-uuid"}', b"{}"],
)
async def test_what_cannot_be_read_becomes_a_dead_letter_with_its_bytes(
    subscription_harness: SubscriptionHarness, data: bytes
) -> None:
    before, (_, work) = messages(), ledger()
    subscription_harness.fake.inject(DropAcks(on=SUB, times=1))
    async with subscription_harness.worker(work):
        message_id = subscription_harness.send(data)
        await subscription_harness.harness.row("SELECT 1 FROM outbox_events")
        await until(lambda: subscription_harness.fake.calls["Acknowledge"])
        subscription_harness.redeliver()
        await until(lambda: subscription_harness.fake.acked(SUB) == [message_id])
        await subscription_harness.harness.ended(*ids(await subscription_harness.published()))
    cursor = await subscription_harness.conn.execute(
        "SELECT payload, attributes FROM outbox_events WHERE topic = 'dead-letters'"
    )
    letters = await cursor.fetchall()
    assert [attributes["message_id"] for _, attributes in letters] == [f"{message_id}:DeadLetterMessage"] * 2
    body = json.loads(letters[0][0])
    assert base64.b64decode(body.pop("raw")) == data
    assert body.pop("failed_at").endswith("Z")
    assert body.pop("error")["type"] == "Undecodable"
    assert body == {
        "job_id": None,
        "user_id": None,
        "preset": None,
        "reason": "undecodable message",
        "attempts": 0,
        "schema_version": 1,
    }
    assert (messages() - before)["undecodable"] == 2


@pytest.mark.parametrize("heeds_flow_control", [True, False])
async def test_while_the_database_is_away_nothing_is_settled_and_no_more_is_read_than_fits(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch, heeds_flow_control: bool
) -> None:
    monkeypatch.setattr("worker.subscription.DATABASE_PAUSE_SECONDS", 0.05)
    ran, work = ledger()
    async with (
        wire_proxy(subscription_harness.harness.url) as database,
        subscription_harness.worker(work, slots=4, url=database.url) as worker,
    ):
        await subscription_harness.harness.row("SELECT 1 FROM workers")
        await until(lambda: subscription_harness.fake.streams(SUB))
        if not heeds_flow_control:
            for receiver in subscription_harness.subscription.receivers:
                receiver.max_messages = math.inf
        claims = worker.consumer._slots.unacknowledged
        ended = claims.ended
        with capture_logs() as logs:
            database.down = True
            wake_ups = []
            for number in range(1, 11):
                wake_ups += await subscription_harness.published()
                if not heeds_flow_control:  # each in an answer of its own
                    await until(partial(delivered, subscription_harness, number))
            await until(lambda: claims.ended >= ended + 3)
        assert [line["event"] for line in logs].count("claim.failed") == 1
        assert 0 < len(source_of(worker)._at_hand) <= 4
        assert len(subscription_harness.subscription.outstanding) <= (4 if heeds_flow_control else 10)
        assert (
            subscription_harness.fake.calls["Acknowledge"]
            == subscription_harness.fake.calls["ModifyAckDeadline"]
            == 0
        )
        database.down = False
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)
    assert (len(subscription_harness.fake.acked(SUB)), subscription_harness.fake.nacked(SUB)) == (10, [])


async def test_what_cannot_be_read_is_kept_while_the_database_is_away(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.subscription.DATABASE_PAUSE_SECONDS", 0.05)
    _, work = ledger()
    async with (
        wire_proxy(subscription_harness.harness.url) as database,
        subscription_harness.worker(work, url=database.url) as worker,
    ):
        await subscription_harness.harness.row("SELECT 1 FROM workers")
        claims = worker.consumer._slots.unacknowledged
        ended = claims.ended
        database.down = True
        message_id = subscription_harness.send(b"?")
        with capture_logs() as logs:
            await until(lambda: any(line["event"] == "message.undecodable" for line in logs))
            await until(lambda: claims.ended >= ended + 2)
        assert subscription_harness.fake.calls["Acknowledge"] == 0
        database.down = False
        await until(lambda: subscription_harness.fake.acked(SUB) == [message_id])
    assert await fetchone(subscription_harness.conn, "SELECT count(*) FROM outbox_events") == (1,)


async def test_with_all_slots_taken_messages_stay_with_the_broker(
    subscription_harness: SubscriptionHarness,
) -> None:
    free = asyncio.Event()
    ran: list[Any] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.id)
        await free.wait()

    wake_ups = await subscription_harness.published(20)
    async with subscription_harness.worker(work, slots=2):
        await subscription_harness.harness.row(LEASED, 2)
        await until(
            lambda: delivered(subscription_harness, 4) and len(subscription_harness.fake.acked(SUB)) == 2
        )
        assert (
            len(subscription_harness.subscription.outstanding),
            len(subscription_harness.subscription.backlog),
        ) == (2, 16)
        free.set()
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert sorted(ran) == sorted(ids(wake_ups))


async def test_a_worker_whose_lease_is_gone_acknowledges_nothing(
    subscription_harness: SubscriptionHarness,
) -> None:
    ran, work = ledger()
    async with subscription_harness.worker(work, lease=60) as worker:
        await subscription_harness.harness.row("DELETE FROM workers RETURNING id")
        wake_ups = await subscription_harness.published()
        await until(lambda: source_of(worker)._at_hand)
        claims = worker.consumer._slots.unacknowledged
        begun = claims.begun
        await until(lambda: claims.ended > begun)
        assert len(subscription_harness.subscription.outstanding) == 1
        assert (
            subscription_harness.fake.calls["Acknowledge"]
            == subscription_harness.fake.calls["ModifyAckDeadline"]
            == 0
        )
        worker.consumer._lease.beat_now()
        await subscription_harness.harness.ended(*ids(wake_ups))
        await subscription_harness.settled()
    assert ran == dict.fromkeys(ids(wake_ups), 1)


async def test_a_drain_gives_back_what_is_at_hand_and_closes_its_stream_without_cancelling_it(
    subscription_harness: SubscriptionHarness,
) -> None:
    before, free = messages(), asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    await subscription_harness.published(6)
    async with subscription_harness.worker(work, slots=2) as worker:
        await subscription_harness.harness.row(LEASED, 2)
        await until(
            lambda: delivered(subscription_harness, 4) and len(subscription_harness.fake.acked(SUB)) == 2
        )
        stream = source_of(worker)._stream
        assert stream
        worker.stop.set()
        await until(lambda: len(subscription_harness.fake.nacked(SUB)) == 2)
        assert subscription_harness.fake.streams(SUB) == 0
        free.set()
        assert await worker.ended() == 0
    assert not stream._call.cancelled()
    assert await stream._call.code() is grpc.StatusCode.OK
    assert (len(subscription_harness.fake.acked(SUB)), subscription_harness.subscription.outstanding) == (
        2,
        {},
    )
    assert messages() - before == {"claimed": 2, "released": 2}
    assert await fetchone(
        subscription_harness.conn, "SELECT count(*) FROM outbox WHERE status = 'published'"
    ) == (4,)


async def test_a_worker_that_will_claim_nothing_for_a_while_leaves_what_is_at_hand_to_others(
    subscription_harness: SubscriptionHarness,
) -> None:
    _, work = ledger()
    async with subscription_harness.worker(work, lease=60) as worker:
        await subscription_harness.harness.row("DELETE FROM workers RETURNING id")
        await subscription_harness.published(2)
        await until(lambda: len(source_of(worker)._at_hand) == 2)
        await source_of(worker).hold()
        await until(lambda: len(subscription_harness.fake.nacked(SUB)) == 2)
        assert not source_of(worker)._at_hand


@pytest.mark.parametrize("fault", ["gone", "mute"])
async def test_a_drain_is_bounded_when_the_broker_does_not_answer(
    subscription_harness: SubscriptionHarness, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for name in ("acknowledgements.CALL_SECONDS", "subscription.CLOSE_SECONDS", "stream.CLOSE_SECONDS"):
        monkeypatch.setattr(f"worker.{name}", 0.2)
    if fault == "mute":
        subscription_harness.fake.inject(Delay(method="StreamingPull", seconds=60, times=1))
    ran, work = ledger()
    async with subscription_harness.worker(work) as worker:
        await until(lambda: subscription_harness.fake.calls["StreamingPull"])
        if fault == "gone":
            await subscription_harness.harness.ended(*ids(await subscription_harness.published()))
            await subscription_harness.fake.stop()
        began = time.monotonic()
        assert await worker.stopped() == 0
        assert time.monotonic() - began < 3
    assert len(ran) == (fault == "gone")
