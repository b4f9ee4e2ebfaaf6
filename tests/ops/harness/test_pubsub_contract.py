"""What every broker does that these tests run on: the fake, and Google's emulator where it is installed.

The emulator is taken for the service, except where a test says in what it differs.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.api_core.exceptions import NotFound
from google.cloud import pubsub_v1
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1.types import DeadLetterPolicy, PubsubMessage, RetryPolicy, Subscription

from ops.waiting import until
from tests.support.pubsub_brokers import BrokerAt
from tests.support.pubsub_clients import SECONDS, Clients


async def test_attributes_and_bytes_come_as_they_were_published(google: Clients) -> None:
    await google.create()
    attributes = {"message_id": "a:1", "empty": "", "ünïcode": "✓" * 300}
    [message_id] = await google.publish(PubsubMessage(data=bytes(range(256)), attributes=attributes))

    [received] = await google.pull(1)

    assert received.message.data == bytes(range(256))
    assert dict(received.message.attributes) == attributes
    assert received.message.message_id == message_id
    assert received.message.publish_time.timestamp() > 0
    assert received.delivery_attempt == 0  # it is only counted with a dead-letter policy


async def test_a_message_may_have_attributes_alone(google: Clients) -> None:
    await google.create()
    await google.publish(PubsubMessage(attributes={"type": "empty"}))
    [received] = await google.pull(1)
    assert received.message.data == b""


async def test_ids_are_the_servers_and_in_the_order_of_the_request(google: Clients) -> None:
    await google.create()
    ids = await google.publish(*(PubsubMessage(data=b"%d" % n, message_id="mine") for n in range(20)))
    received = await google.pull(20)
    assert len(set(ids)) == 20
    assert {each.message.message_id: each.message.data for each in received} == {
        message_id: b"%d" % n for n, message_id in enumerate(ids)
    }


async def test_every_subscription_gets_every_message_published_after_it_was_made(google: Clients) -> None:
    topic = await google.create_topic()
    await google.publish(b"before")
    for name in ("one", "two"):
        await google.subscribe(name, topic)
    await google.publish(b"after")
    for name in ("one", "two"):
        assert [each.message.data for each in await google.pull(1, name)] == [b"after"]


async def test_an_acknowledged_message_does_not_come_again(google: Clients) -> None:
    await google.create()
    await google.publish(b"one", b"two")
    first, second = await google.pull(2)
    await google.acknowledge([first.ack_id])
    await google.acknowledge([first.ack_id])  # again is no error
    await google.modify([first.ack_id, second.ack_id], 0)
    assert [each.message.data for each in await google.pull(1)] == [second.message.data]
    assert await google.pull_once() == []


async def test_a_nacked_message_comes_again_at_once_under_another_ack_id(google: Clients) -> None:
    await google.create(ack_deadline_seconds=600)
    await google.publish(b"x")
    [first] = await google.pull(1)
    await google.modify([first.ack_id], 0)
    [second] = await google.pull(1)
    assert second.message == first.message
    assert second.ack_id != first.ack_id


async def test_a_message_comes_again_after_its_ack_deadline(google: Clients) -> None:
    await google.create(ack_deadline_seconds=600)
    await google.publish(b"x")
    [first] = await google.pull(1)
    await google.modify([first.ack_id], 1)
    [second] = await google.pull(1)
    assert second.message == first.message
    await google.acknowledge([first.ack_id])  # too late, and yet no error
    await google.modify([second.ack_id], 0)
    assert len(await google.pull(1)) == 1


async def test_a_retry_policy_delays_what_was_nacked_again(google: Clients) -> None:
    """The emulator gives the first nack back at once; the service, as it says, waits then too."""
    policy = RetryPolicy(minimum_backoff=Duration(seconds=1), maximum_backoff=Duration(seconds=1))
    await google.create(retry_policy=policy)
    await google.publish(b"x")
    for _ in range(2):
        [received] = await google.pull(1)
        await google.modify([received.ack_id], 0)
    assert await google.pull_once() == []
    assert len(await google.pull(1)) == 1


async def test_delivery_attempts_are_counted_and_the_last_goes_to_the_dead_letter_topic(
    google: Clients,
) -> None:
    await google.create("dead")
    policy = DeadLetterPolicy(dead_letter_topic=google.topic("dead"), max_delivery_attempts=5)
    await google.create(dead_letter_policy=policy)
    await google.publish(PubsubMessage(data=b"bad", attributes={"message_id": "a:1"}))

    for attempt in range(1, 6):
        [received] = await google.pull(1)
        assert received.delivery_attempt == attempt
        await google.modify([received.ack_id], 0)

    assert await google.pull_once() == []  # it is this that lets the emulator, not the service, forward it
    [dead] = await google.pull(1, "dead-sub")
    assert dead.message.data == b"bad"
    attributes = dict(dead.message.attributes)
    assert attributes.pop("CloudPubSubDeadLetterSourceTopicPublishTime")
    assert attributes == {
        "message_id": "a:1",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": "jobs-sub",
        "CloudPubSubDeadLetterSourceSubscriptionProject": google.project,
    }


async def test_a_stream_delivers_what_waits_and_what_comes(google: Clients) -> None:
    await google.create()
    await google.publish(b"waits")
    async with google.stream() as stream:
        await stream.until(1)
        await google.publish(b"comes")
        await stream.until(2)
    assert [each.message.data for each in stream.received] == [b"waits", b"comes"]
    assert stream.error is None


async def test_a_stream_acknowledges_and_nacks(google: Clients) -> None:
    await google.create()
    await google.publish(b"one", b"two")
    async with google.stream() as stream:
        one, two = sorted(await stream.until(2), key=lambda each: each.message.data)
        stream.send(ack_ids=[one.ack_id], modify_deadline_ack_ids=[two.ack_id], modify_deadline_seconds=[0])
        again = (await stream.until(3))[2]
        assert again.message.data == b"two"
        stream.send(ack_ids=[again.ack_id])
    assert await google.pull_once() == []


async def test_what_a_half_closed_stream_left_can_be_given_back(google: Clients) -> None:
    await google.create()
    await google.publish(b"x")
    async with google.stream() as stream:
        [left] = await stream.until(1)
    assert await google.pull_once() == []
    await google.modify([left.ack_id], 0)
    assert len(await google.pull(1)) == 1


async def test_each_message_goes_to_one_of_the_streams(google: Clients) -> None:
    await google.create()
    async with google.stream() as one, google.stream() as two:
        sent = [message_id for n in range(40) for message_id in await google.publish(b"%d" % n)]
        await until(lambda: len(one.received) + len(two.received) >= 40)
    got = [each.message.message_id for each in one.received + two.received]
    assert sorted(got) == sorted(sent)


async def test_a_stream_ends_when_its_subscription_is_deleted(google: Clients) -> None:
    subscription = await google.create()
    await google.publish(b"x")
    async with google.stream() as stream:
        await stream.until(1)
        await google.subscriber.delete_subscription(subscription=subscription, retry=None, timeout=SECONDS)
        assert isinstance(await stream.ended(), NotFound)


async def test_what_waits_in_a_subscription_outlives_its_topic(google: Clients) -> None:
    subscription = await google.create()
    await google.publish(b"x")
    await google.publisher.delete_topic(topic=google.topic("jobs"), retry=None, timeout=SECONDS)
    with pytest.raises(NotFound):
        await google.publish(b"y")
    found = await google.subscriber.get_subscription(subscription=subscription, retry=None, timeout=SECONDS)
    assert found.topic == "_deleted-topic_"
    assert [each.message.data for each in await google.pull(1)] == [b"x"]


async def test_topics_and_subscriptions_are_listed(google: Clients) -> None:
    made = [await google.create(name) for name in ("jobs", "results")]
    project = f"projects/{google.project}"
    topics = await google.publisher.list_topics(project=project, timeout=SECONDS)
    assert [topic.name async for topic in topics] == [google.topic("jobs"), google.topic("results")]
    subscriptions = await google.subscriber.list_subscriptions(project=project, timeout=SECONDS)
    assert [each.name async for each in subscriptions] == made
    of_topic = await google.publisher.list_topic_subscriptions(topic=google.topic("jobs"), timeout=SECONDS)
    assert [name async for name in of_topic] == made[:1]


async def test_an_update_changes_what_its_mask_names_and_clears_what_it_leaves_out(google: Clients) -> None:
    policy = RetryPolicy(minimum_backoff=Duration(seconds=1), maximum_backoff=Duration(seconds=2))
    name = await google.create(ack_deadline_seconds=60, retry_policy=policy)
    await google.create_topic("dead")
    dead = DeadLetterPolicy(dead_letter_topic=google.topic("dead"), max_delivery_attempts=7)
    given = Subscription(
        name=name,
        ack_deadline_seconds=300,
        dead_letter_policy=dead,
        message_retention_duration=Duration(seconds=86400),
    )
    await google.update(given, "dead_letter_policy", "retry_policy", "message_retention_duration")

    found = await google.subscriber.get_subscription(subscription=name, retry=None, timeout=SECONDS)
    assert found.ack_deadline_seconds == 60
    assert found.dead_letter_policy == dead
    assert found.message_retention_duration.total_seconds() == 86400
    assert not found.retry_policy
    await google.update(given, "ack_deadline_seconds")
    found = await google.subscriber.get_subscription(subscription=name, retry=None, timeout=SECONDS)
    assert found.ack_deadline_seconds == 300


async def test_googles_threaded_client_reads_too(
    google: Clients, broker: BrokerAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    name = await google.create()
    await google.publish(*(b"%d" % n for n in range(10)))
    received: set[bytes] = set()

    def take(message: Any) -> None:
        received.add(message.data)
        message.ack()

    with pubsub_v1.SubscriberClient() as subscriber:
        pulling = subscriber.subscribe(name, callback=take)
        await until(lambda: len(received) == 10)
        pulling.cancel()
        await asyncio.to_thread(pulling.result, SECONDS)
