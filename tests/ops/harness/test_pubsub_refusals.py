"""What brokers refuse, and with which code. The emulator accepts more than the service does; each row says so."""

from __future__ import annotations

from typing import Any

import pytest
from google.api_core.exceptions import (
    AlreadyExists,
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
    OutOfRange,
)
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1.types import (
    DeadLetterPolicy,
    ExpirationPolicy,
    PubsubMessage,
    RetryPolicy,
    Subscription,
)

from tests.support.pubsub_brokers import BrokerAt
from tests.support.pubsub_clients import Clients

BOTH, FAKE = True, False
"""Whether the emulator refuses it as well."""

Message = PubsubMessage


def attributes(**given: str) -> list[Message]:
    return [Message(data=b"x", attributes=given)]


@pytest.mark.parametrize(
    ("messages", "emulator_too"),
    [
        pytest.param([], BOTH, id="no message"),
        pytest.param([Message()], BOTH, id="an empty message"),
        pytest.param([Message(data=b"x"), Message()], BOTH, id="an empty message among others"),
        pytest.param([Message(data=b"x")] * 1001, BOTH, id="more than 1000 messages"),
        pytest.param([Message(data=b"x" * 1_000_100)] * 10, FAKE, id="more than 10 MB"),
        pytest.param(attributes(**{"k" * 257: "v"}), FAKE, id="a long key"),
        pytest.param(attributes(k="ü" * 513), FAKE, id="a value of more than 1024 bytes"),
        pytest.param(attributes(**{f"k{n}": "v" for n in range(101)}), FAKE, id="101 attributes"),
        pytest.param(attributes(**{"": "v"}), FAKE, id="an empty key"),
        pytest.param(attributes(googclient="v"), FAKE, id="a reserved key"),
    ],
)
async def test_a_request_with_an_invalid_message_is_refused_whole(
    google: Clients, broker: BrokerAt, messages: list[Message], emulator_too: bool
) -> None:
    skip_unless(emulator_too, broker)
    await google.create()
    with pytest.raises(InvalidArgument):
        await google.publish(*messages)
    assert await google.pull_once() == []


async def test_the_limits_themselves_are_accepted(google: Clients) -> None:
    await google.create()
    most = Message(data=b"x", attributes={f"{n:03}".ljust(256, "k"): "v" * 1024 for n in range(100)})
    await google.publish(most)
    assert len(await google.publish(*[b"x"] * 1000)) == 1000
    await google.publish(b"x" * 9_990_000)


@pytest.mark.parametrize(
    ("settings", "emulator_too", "error"),
    [
        pytest.param({"ack_deadline_seconds": 9}, FAKE, InvalidArgument, id="a short ack deadline"),
        pytest.param({"ack_deadline_seconds": 601}, BOTH, InvalidArgument, id="a long ack deadline"),
        pytest.param(
            {"message_retention_duration": Duration(seconds=5)}, BOTH, InvalidArgument, id="retention"
        ),
        pytest.param(
            {"expiration_policy": ExpirationPolicy(ttl=Duration(seconds=60))},
            FAKE,
            InvalidArgument,
            id="expiry",
        ),
        pytest.param(
            {
                "retry_policy": RetryPolicy(
                    minimum_backoff=Duration(seconds=9), maximum_backoff=Duration(seconds=8)
                )
            },
            BOTH,
            InvalidArgument,
            id="the least back-off over the most",
        ),
        pytest.param(
            {"retry_policy": RetryPolicy(minimum_backoff=Duration(), maximum_backoff=Duration(seconds=601))},
            BOTH,
            InvalidArgument,
            id="a back-off over ten minutes",
        ),
        pytest.param({"dead_letter_topic": "dead", "attempts": 4}, BOTH, InvalidArgument, id="few attempts"),
        pytest.param({"dead_letter_topic": "lost", "attempts": 5}, BOTH, NotFound, id="no dead-letter topic"),
    ],
)
async def test_a_subscription_with_invalid_settings_is_neither_made_nor_changed(
    google: Clients,
    broker: BrokerAt,
    settings: dict[str, Any],
    emulator_too: bool,
    error: type[GoogleAPICallError],
) -> None:
    skip_unless(emulator_too, broker)
    await google.create_topic("dead")
    name = await google.create()
    if "attempts" in settings:
        topic = google.topic(settings["dead_letter_topic"])
        policy = DeadLetterPolicy(dead_letter_topic=topic, max_delivery_attempts=settings["attempts"])
        settings = {"dead_letter_policy": policy}
    expected = (error, OutOfRange) if broker.kind == "emulator" else error  # it answers so to few attempts
    with pytest.raises(expected):
        await google.subscribe("other", google.topic("jobs"), **settings)
    with pytest.raises(expected):
        await google.update(Subscription(name=name, **settings), *settings)


@pytest.mark.parametrize(
    "paths", [[], ["nonsense"], ["topic"], ["filter"], ["name"], ["retry_policy.minimum_backoff"]]
)
async def test_an_update_of_nothing_or_of_what_is_fixed_is_refused(google: Clients, paths: list[str]) -> None:
    name = await google.create()
    with pytest.raises(InvalidArgument):
        await google.update(Subscription(name=name, ack_deadline_seconds=20), *paths)


async def test_what_does_not_exist_is_not_found(google: Clients) -> None:
    name = await google.create()
    calls: list[Any] = [
        google.publish(b"x", topic="lost"),
        google.subscribe("other", google.topic("lost")),
        google.pull_once("lost"),
        google.acknowledge(["x"], "lost"),
        google.modify(["x"], 10, "lost"),
        google.update(Subscription(name=f"{name}-lost", ack_deadline_seconds=20), "ack_deadline_seconds"),
        google.publisher.get_topic(topic=google.topic("lost")),
        google.publisher.delete_topic(topic=google.topic("lost")),
        google.subscriber.get_subscription(subscription=google.subscription("lost")),
        google.subscriber.delete_subscription(subscription=google.subscription("lost")),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call
    async with google.stream("lost") as stream:
        assert isinstance(await stream.ended(), NotFound)


async def test_a_name_is_taken_once_and_has_a_shape(google: Clients) -> None:
    await google.create()
    with pytest.raises(AlreadyExists):
        await google.create_topic()
    with pytest.raises(AlreadyExists):
        await google.subscribe("jobs-sub", google.topic("jobs"))
    for name in ("ab", "1abc", "a/bc", "googtopic", "a" * 256):
        with pytest.raises(InvalidArgument):
            await google.create_topic(name)


async def test_malformed_ack_ids_and_deadlines_are_refused(google: Clients) -> None:
    await google.create()
    await google.publish(b"x")
    await google.subscribe("other", google.topic("jobs"))
    [received] = await google.pull(1)
    for ack_ids in ([], ["bogus"], [received.ack_id, "bogus"]):
        with pytest.raises(InvalidArgument):
            await google.acknowledge(ack_ids)
        with pytest.raises(InvalidArgument):
            await google.modify(ack_ids, 10)
    with pytest.raises(InvalidArgument):
        await google.acknowledge([received.ack_id], "other")
    with pytest.raises(InvalidArgument):
        await google.modify([received.ack_id], -1)


@pytest.mark.parametrize(
    ("first", "second", "emulator_too"),
    [
        ({"stream_ack_deadline_seconds": 9}, {}, BOTH),
        ({"stream_ack_deadline_seconds": 0}, {}, BOTH),
        ({}, {"subscription": "projects/p/subscriptions/jobs-sub"}, BOTH),
        ({}, {"ack_ids": ["bogus"]}, BOTH),
        ({}, {"modify_deadline_ack_ids": ["bogus"]}, BOTH),
        ({}, {"stream_ack_deadline_seconds": 5}, BOTH),
        ({}, {"max_outstanding_messages": 5}, FAKE),
    ],
)
async def test_an_invalid_request_ends_its_stream(
    google: Clients, broker: BrokerAt, first: dict[str, Any], second: dict[str, Any], emulator_too: bool
) -> None:
    skip_unless(emulator_too, broker)
    await google.create()
    async with google.stream(**first) as stream:
        if second:
            stream.send(**second)
        assert isinstance(await stream.ended(), InvalidArgument)


def skip_unless(emulator_too: bool, broker: BrokerAt) -> None:
    if broker.kind == "emulator" and not emulator_too:
        pytest.skip("the emulator accepts it")
