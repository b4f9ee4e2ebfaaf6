"""What the fake alone can do: fail on request, move its clock, go away and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.api_core.exceptions import (
    DeadlineExceeded,
    GoogleAPICallError,
    InvalidArgument,
    ServiceUnavailable,
)
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1.types import PubsubMessage, RetryPolicy
from grpc import StatusCode

from ops.harness.pubsub_fake import (
    Delay,
    DropAcks,
    Duplicate,
    Fail,
    FakePubSub,
    LoseReply,
    Reorder,
    Stall,
    pubsub_process,
)
from ops.waiting import until
from tests.support.pubsub_clients import SECONDS, Clients, clients


@pytest.fixture
async def google(fake: FakePubSub) -> AsyncIterator[Clients]:
    async with clients(fake.host, "p") as made:
        yield made


def data(fake: FakePubSub, topic: str = "jobs") -> list[bytes]:
    return [message.data for message in fake.published(topic)]


async def test_a_failed_call_does_nothing_as_often_as_was_said(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    fault = fake.inject(Fail(method="Publish", times=2))
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            await google.publish(b"x")
    await google.publish(b"y")
    assert data(fake) == [b"y"]
    assert fault.hits == 2
    assert fake.calls["Publish"] == 3


async def test_a_fault_keeps_to_its_topic_and_method(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    await google.create("results")
    fake.inject(Fail(method="Publish", on="jobs", code=StatusCode.NOT_FOUND))
    await google.publish(b"x", topic="results")
    assert len(await google.pull(1, "results-sub")) == 1
    assert await google.pull_once() == []
    fake.heal()
    await google.publish(b"x")


async def test_a_lost_reply_leaves_the_call_done(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    fake.inject(LoseReply(method="Publish", times=1, code=StatusCode.DEADLINE_EXCEEDED))
    with pytest.raises(DeadlineExceeded):
        await google.publish(b"x")
    await google.publish(b"x")
    assert data(fake) == [b"x", b"x"]


async def test_one_poison_message_refuses_its_whole_request(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    fake.inject(Fail(method="Publish", containing="poison", code=StatusCode.INVALID_ARGUMENT))
    bad = PubsubMessage(data=b"{}", attributes={"job_id": "poison-7"})
    for request in ([b"good", bad], [b"some poison in it"]):
        with pytest.raises(InvalidArgument):
            await google.publish(*request)
    await google.publish(b"good")
    assert data(fake) == [b"good"]


async def test_a_fault_may_ask_a_function_for_each_message(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    fake.inject(Fail(where=lambda message: len(message.data) > 3, code=StatusCode.INVALID_ARGUMENT))
    await google.publish(b"abc")
    with pytest.raises(InvalidArgument):
        await google.publish(b"abcd")


async def test_a_fault_strikes_with_its_probability_and_the_same_way_for_a_seed() -> None:
    async def struck(seed: int) -> list[bool]:
        async with FakePubSub(seed=seed) as fake, clients(fake.host, "p") as google:
            await google.create()
            fake.inject(Fail(method="Publish", probability=0.5))
            results = await asyncio.gather(*(google.publish(b"x") for _ in range(1)), return_exceptions=True)
            for _ in range(29):
                results += await asyncio.gather(google.publish(b"x"), return_exceptions=True)
            return [isinstance(result, GoogleAPICallError) for result in results]

    first = await struck(1)
    assert 5 < sum(first) < 25
    assert await struck(1) == first
    assert await struck(2) != first


async def test_a_delayed_call_is_done_later(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    fake.inject(Delay(method="Publish", seconds=0.2, times=1))
    late = asyncio.create_task(google.publish(b"late"))
    await until(lambda: fake.calls["Publish"] == 1)
    await google.publish(b"early")
    await late
    assert data(fake) == [b"early", b"late"]


async def test_a_duplicate_comes_at_once_and_one_ack_is_enough(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    fake.inject(Duplicate(on="jobs-sub", times=1))
    await google.publish(b"x", b"y")
    received = await google.pull(3)
    assert sorted(each.message.data for each in received) == [b"x", b"x", b"y"]
    twice = [each for each in received if each.message.data == b"x"]
    assert twice[0].ack_id != twice[1].ack_id
    await google.acknowledge([twice[0].ack_id])
    await google.modify([twice[1].ack_id], 0)
    assert await google.pull_once() == []
    assert fake.acked("jobs-sub") == [twice[0].message.message_id]


async def test_reordering_changes_the_order_and_nothing_else(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    sent = [b"%d" % n for n in range(50)]
    await google.publish(*sent)
    fake.inject(Reorder(times=1))
    got = [each.message.data for each in await google.pull(50)]
    assert got != sent
    assert sorted(got) == sorted(sent)


async def test_a_dropped_ack_lets_the_message_come_again(fake: FakePubSub, google: Clients) -> None:
    await google.create(ack_deadline_seconds=60)
    await google.publish(b"x", b"y")
    received = await google.pull(2)
    fake.inject(DropAcks(containing="x"))
    await google.acknowledge([each.ack_id for each in received])
    fake.clock.advance(60)
    assert [each.message.data for each in await google.pull(1)] == [b"x"]


async def test_a_stalled_stream_stays_open_and_a_new_one_flows(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    async with google.stream() as stalled:
        await until(lambda: fake.streams("jobs-sub") == 1)
        fault = fake.inject(Stall(on="jobs-sub"))
        await google.publish(b"x")
        async with google.stream() as fresh:
            await fresh.until(1)
        await google.publish(b"y")
        fake.lift(fault)
        await stalled.until(1)
    assert stalled.error is None


async def test_a_stall_of_new_streams_stops_all_until_it_is_lifted(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    await google.publish(b"x")
    fault = fake.inject(Stall(new_streams=True))
    async with google.stream() as stream:
        await until(lambda: fake.streams("jobs-sub") == 1)
        assert await google.pull_once() == []
        assert stream.received == []
        fake.lift(fault)
        await stream.until(1)


async def test_cut_streams_end_with_the_given_code(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    async with google.stream() as stream:
        await until(lambda: fake.streams("jobs-sub") == 1)
        fake.cut_streams("jobs-sub")
        assert isinstance(await stream.ended(), ServiceUnavailable)
    assert fake.streams("jobs-sub") == 0


@pytest.mark.parametrize("limit", [{"max_outstanding_messages": 2}, {"max_outstanding_bytes": 150}])
async def test_a_stream_gets_no_more_than_it_can_hold(
    fake: FakePubSub, google: Clients, limit: dict[str, Any]
) -> None:
    await google.create()
    await google.publish(*[b"x" * 100] * 5)
    async with google.stream(**limit) as stream:
        for held in (2, 4):
            received = await stream.until(held)
            assert len(received) == held
            assert len(fake.subscription("jobs-sub").backlog) == 5 - held
            ack, nack = received[-2:]
            stream.send(ack_ids=[ack.ack_id])
            await google.acknowledge([nack.ack_id])
        await stream.until(5)


async def test_the_clock_moves_deadlines_retries_and_publish_times(fake: FakePubSub, google: Clients) -> None:
    policy = RetryPolicy(minimum_backoff=Duration(seconds=10), maximum_backoff=Duration(seconds=600))
    await google.create(ack_deadline_seconds=300, retry_policy=policy)
    await google.publish(b"x")
    [first] = await google.pull(1)
    fake.clock.advance(299)
    assert len(fake.subscription("jobs-sub").outstanding) == 1
    fake.clock.advance(1)
    assert fake.subscription("jobs-sub").expired.items == [first.message.message_id]
    fake.clock.advance(9)
    assert not fake.subscription("jobs-sub").backlog
    fake.clock.advance(1)
    assert len(await google.pull(1)) == 1
    await google.publish(b"y")
    [one, other] = (message.publish_time.seconds for message in fake.published("jobs"))
    assert other - one >= 310


async def test_a_stream_has_its_own_ack_deadline(fake: FakePubSub, google: Clients) -> None:
    await google.create(ack_deadline_seconds=600)
    await google.publish(b"x")
    async with google.stream(stream_ack_deadline_seconds=10) as stream:
        await stream.until(1)
        fake.clock.advance(10)
        await stream.until(2)


async def test_what_a_vanished_client_held_comes_again_after_its_deadline(
    fake: FakePubSub, google: Clients
) -> None:
    await google.create()
    await google.publish(b"x")
    async with clients(fake.host, "p") as doomed, doomed.stream(stream_ack_deadline_seconds=30) as stream:
        await stream.until(1)
        await doomed.close()
        await until(lambda: fake.streams("jobs-sub") == 0)
    assert await google.pull_once() == []
    fake.clock.advance(30)
    assert len(await google.pull(1)) == 1


async def test_a_message_is_dropped_after_its_retention(fake: FakePubSub, google: Clients) -> None:
    await google.create(message_retention_duration=Duration(seconds=600))
    await google.publish(b"x")
    fake.clock.advance(601)
    assert await google.pull_once() == []


async def test_it_goes_away_and_comes_back_with_all_it_had(fake: FakePubSub, google: Clients) -> None:
    await google.create()
    await google.publish(b"out", b"waits")
    async with google.stream(max_outstanding_messages=1) as stream:
        [held] = await stream.until(1)
        await google.pull(1)
        pull = asyncio.create_task(google.pull(1))
        await until(lambda: fake.streams("jobs-sub") == 2)
        await fake.stop()
        assert isinstance(await stream.ended(), ServiceUnavailable)
    with pytest.raises(ServiceUnavailable):
        await pull
    with pytest.raises(ServiceUnavailable):
        await google.publish(b"refused")

    await fake.start()
    async with clients(fake.host, "p") as google_again:
        await google_again.acknowledge([held.ack_id])
        fake.clock.advance(10)
        assert [each.message.data for each in await google_again.pull(1)] == [b"waits"]
    assert data(fake) == [b"out", b"waits"]


async def test_a_fake_of_another_process_takes_faults_and_says_what_it_saw() -> None:
    async with pubsub_process("--seed", "3") as remote, clients(remote.host, "p") as google:
        await google.create()
        poison = await remote.inject(Fail(containing="poison", code=StatusCode.INVALID_ARGUMENT))
        with pytest.raises(InvalidArgument):
            await google.publish(b"poison")
        await remote.lift(poison)
        await google.publish(PubsubMessage(data=b"poison", attributes={"a": "b"}), b"two")
        assert await remote.hits(poison) == 1
        received = await google.pull(2)
        await google.acknowledge([received[0].ack_id])
        await remote.advance(600)
        [again] = await google.pull(1)
        assert again.message == received[1].message

        [second] = await remote.published("jobs", 1)
        assert second.data == b"two"
        state = await remote.state()
        assert state["calls"]["Publish"] == 2
        assert state["topics"] == {google.topic("jobs"): 2}
        counts = state["subscriptions"][google.subscription("jobs-sub")]
        assert counts == {
            "backlog": 0,
            "outstanding": 1,
            "streams": 0,
            "delivered": 3,
            "acked": 1,
            "nacked": 0,
            "expired": 1,
        }


async def test_a_fake_of_another_process_goes_away_and_comes_back() -> None:
    async with pubsub_process() as remote, clients(remote.host, "p") as google:
        await google.create()
        async with google.stream() as stream:
            await google.publish(b"x")
            await stream.until(1)
            await remote.stop()
            assert isinstance(await stream.ended(), ServiceUnavailable)
        await remote.start()
        async with clients(remote.host, "p") as google_again, asyncio.timeout(SECONDS):
            await google_again.publish(b"y")
        assert len(await remote.published("jobs")) == 2
