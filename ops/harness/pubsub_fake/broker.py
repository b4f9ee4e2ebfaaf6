"""Topics and subscriptions, and the effects of calls. There is no I/O: the state outlives a restart of the server."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import grpc
from google import pubsub_v1 as types
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from ops.harness.pubsub_fake.clock import Clock
from ops.harness.pubsub_fake.faults import Faults
from ops.harness.pubsub_fake.limits import (
    Raw,
    Refusal,
    check_name,
    check_publish,
    check_subscription,
    require,
)
from ops.harness.pubsub_fake.subscription import Entry, Log, Subscription

T = TypeVar("T")
PublishResponse = types.PublishResponse.pb()
PubsubMessage = types.PubsubMessage.pb()
DELETED_TOPIC = "_deleted-topic_"
MUTABLE_TOPIC = {"labels", "message_retention_duration"}
MUTABLE_SUBSCRIPTION = {
    "ack_deadline_seconds",
    "dead_letter_policy",
    "expiration_policy",
    "labels",
    "message_retention_duration",
    "retry_policy",
}


@dataclass
class Topic:
    settings: Raw
    published: Log[Raw]
    subscriptions: list[Subscription] = field(default_factory=list)


class Broker:
    def __init__(self, clock: Clock, faults: Faults, rng: Random, keep_history: bool) -> None:
        self.topics: dict[str, Topic] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self._message_ids = itertools.count(1)
        self._shared = (clock, faults, rng)
        self._clock = clock
        self._keep_history = keep_history

    def topic(self, name: str) -> Topic:
        return _found(self.topics, name)

    def subscription(self, name: str) -> Subscription:
        return _found(self.subscriptions, name)

    def create_topic(self, settings: Raw) -> Raw:
        check_name(settings.name, "topics")
        _absent(self.topics, settings.name)
        self.topics[settings.name] = Topic(_copy(settings), Log(self._keep_history))
        return settings

    def get_topic(self, request: Raw) -> Raw:
        return self.topic(request.topic).settings

    def list_topics(self, request: Raw) -> Raw:
        response = types.ListTopicsResponse.pb()()
        names, response.next_page_token = _page(self.topics, request)
        response.topics.extend(self.topics[name].settings for name in names)
        return response

    def list_topic_subscriptions(self, request: Raw) -> Raw:
        response = types.ListTopicSubscriptionsResponse.pb()()
        response.subscriptions.extend(each.name for each in self.topic(request.topic).subscriptions)
        return response

    def update_topic(self, request: Raw) -> Raw:
        topic = self.topic(request.topic.name)
        topic.settings = _merged(topic.settings, request.topic, request.update_mask, MUTABLE_TOPIC)
        return topic.settings

    def delete_topic(self, request: Raw) -> Raw:
        topic = self.topic(request.topic)
        for subscription in topic.subscriptions:
            subscription.settings.topic = DELETED_TOPIC
        del self.topics[request.topic]
        return Empty()

    def create_subscription(self, settings: Raw) -> Raw:
        check_name(settings.name, "subscriptions")
        _absent(self.subscriptions, settings.name)
        topic = self.topic(settings.topic)
        settings = self._checked(_copy(settings))
        subscription = Subscription(settings, *self._shared, self._forward, self._keep_history)
        self.subscriptions[settings.name] = subscription
        topic.subscriptions.append(subscription)
        return settings

    def get_subscription(self, request: Raw) -> Raw:
        return self.subscription(request.subscription).settings

    def list_subscriptions(self, request: Raw) -> Raw:
        response = types.ListSubscriptionsResponse.pb()()
        names, response.next_page_token = _page(self.subscriptions, request)
        response.subscriptions.extend(self.subscriptions[name].settings for name in names)
        return response

    def update_subscription(self, request: Raw) -> Raw:
        subscription = self.subscription(request.subscription.name)
        merged = _merged(
            subscription.settings, request.subscription, request.update_mask, MUTABLE_SUBSCRIPTION
        )
        subscription.settings = self._checked(merged)
        return merged

    def delete_subscription(self, request: Raw) -> Raw:
        subscription = self.subscription(request.subscription)
        del self.subscriptions[subscription.name]
        if subscription.settings.topic != DELETED_TOPIC:
            self.topics[subscription.settings.topic].subscriptions.remove(subscription)
        subscription.close(_not_found(subscription.name))
        return Empty()

    def publish(self, request: Raw) -> Raw:
        topic = self.topic(request.topic)
        check_publish(request)
        self._accept(topic, request.messages)
        return PublishResponse(message_ids=[message.message_id for message in request.messages])

    def tick(self) -> None:
        for subscription in list(self.subscriptions.values()):
            subscription.tick()

    def _accept(self, topic: Topic, messages: Any) -> None:
        now = self._clock.now()
        stamp = Timestamp()
        stamp.FromNanoseconds(int(now * 1e9))
        accepted: list[Raw] = []
        for message in messages:
            message.message_id = str(next(self._message_ids))
            message.publish_time.CopyFrom(stamp)
            accepted.append(message)
            topic.published.append(message)
        for subscription in topic.subscriptions:
            subscription.offer(Entry(message, message.ByteSize(), now) for message in accepted)

    def _checked(self, settings: Raw) -> Raw:
        check_subscription(settings)
        if settings.HasField("dead_letter_policy"):
            self.topic(settings.dead_letter_policy.dead_letter_topic)
        return settings

    def _forward(self, entry: Entry, subscription: Subscription) -> bool:
        """Publish a new message to the dead-letter topic, with the service's attributes. False if there is no topic."""
        policy = subscription.settings.dead_letter_policy
        topic = self.topics.get(policy.dead_letter_topic)
        if topic is None:
            return False
        _, project, _, name = subscription.name.split("/")
        message = PubsubMessage(data=entry.message.data, attributes=entry.message.attributes)
        message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(entry.failures)
        message.attributes["CloudPubSubDeadLetterSourceSubscription"] = name
        message.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = project
        published = entry.message.publish_time.ToJsonString()
        message.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = published
        self._accept(topic, [message])
        return True


def _found(those: dict[str, T], name: str) -> T:
    if name not in those:
        raise _not_found(name)
    return those[name]


def _not_found(name: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")


def _absent(those: dict[str, Any], name: str) -> None:
    if name in those:
        raise Refusal(grpc.StatusCode.ALREADY_EXISTS, f"Resource already exists (resource={name}).")


def _copy(message: Raw) -> Raw:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _page(those: dict[str, Any], request: Raw) -> tuple[list[str], str]:
    names = [name for name in sorted(those) if name.startswith(f"{request.project}/")]
    start = int(request.page_token or 0)
    end = start + (request.page_size or len(names))
    return names[start:end], str(end) if end < len(names) else ""


def _merged(old: Raw, new: Raw, mask: FieldMask, mutable: set[str]) -> Raw:
    require(mask.paths, "an update needs a field mask")
    for path in mask.paths:
        require(path in mutable, f"{path!r} cannot be updated")
    merged = _copy(old)
    # Fields are replaced, not merged, so that a field that is left out of `new` is cleared.
    mask.MergeMessage(new, merged, replace_message_field=True, replace_repeated_field=True)
    return merged
