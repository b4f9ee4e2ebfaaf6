"""The gRPC methods of google.pubsub.v1's Publisher and Subscriber, over Google's own message types."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any

import grpc
from google import pubsub_v1 as types
from google.protobuf.empty_pb2 import Empty

from ops.harness.pubsub_fake.broker import Broker
from ops.harness.pubsub_fake.faults import Delay, Fail, Faults, LoseReply
from ops.harness.pubsub_fake.limits import MAX_ACK_REQUEST_BYTES, Raw, Refusal, require
from ops.harness.pubsub_fake.subscription import Receiver, Subscription

PULL_SECONDS = 10.0
"""An empty pull is answered after this time, or shortly before the client's deadline."""
PULL_MARGIN = 0.8

PullResponse = types.PullResponse.pb()
StreamingPullRequest = types.StreamingPullRequest.pb()
StreamingPullResponse = types.StreamingPullResponse.pb()

Act = Callable[..., Any]
"""Takes a request and returns its answer. A coroutine function takes the call's context too."""


class Calls:
    """`counts` has an entry for each method that was called. `stop` ends running and new calls with UNAVAILABLE."""

    def __init__(self, broker: Broker, faults: Faults) -> None:
        self.counts: Counter[str] = Counter()
        self.numbers = itertools.count(1)
        self._broker = broker
        self._faults = faults
        self._receivers: set[Receiver] = set()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()
        for receiver in self._receivers:
            receiver.close(_shutting_down())

    def resume(self) -> None:
        self._stopped.clear()

    def handlers(self) -> list[Any]:
        """For the server's `add_generic_rpc_handlers`."""
        broker = self._broker
        publisher: list[tuple[str, Any, str, Act]] = [
            ("CreateTopic", types.Topic, "name", broker.create_topic),
            ("GetTopic", types.GetTopicRequest, "topic", broker.get_topic),
            ("UpdateTopic", types.UpdateTopicRequest, "topic.name", broker.update_topic),
            ("ListTopics", types.ListTopicsRequest, "project", broker.list_topics),
            (
                "ListTopicSubscriptions",
                types.ListTopicSubscriptionsRequest,
                "topic",
                broker.list_topic_subscriptions,
            ),
            ("DeleteTopic", types.DeleteTopicRequest, "topic", broker.delete_topic),
            ("Publish", types.PublishRequest, "topic", broker.publish),
        ]
        subscriber: list[tuple[str, Any, str, Act]] = [
            ("CreateSubscription", types.Subscription, "name", broker.create_subscription),
            ("GetSubscription", types.GetSubscriptionRequest, "subscription", broker.get_subscription),
            (
                "UpdateSubscription",
                types.UpdateSubscriptionRequest,
                "subscription.name",
                broker.update_subscription,
            ),
            ("ListSubscriptions", types.ListSubscriptionsRequest, "project", broker.list_subscriptions),
            (
                "DeleteSubscription",
                types.DeleteSubscriptionRequest,
                "subscription",
                broker.delete_subscription,
            ),
            ("Pull", types.PullRequest, "subscription", self._pull),
            ("Acknowledge", types.AcknowledgeRequest, "subscription", self._acknowledge),
            ("ModifyAckDeadline", types.ModifyAckDeadlineRequest, "subscription", self._modify),
        ]
        streaming = grpc.stream_stream_rpc_method_handler(
            self._streaming_pull, StreamingPullRequest.FromString, StreamingPullResponse.SerializeToString
        )
        publishing = {row[0]: self._unary(*row) for row in publisher}
        subscribing = {row[0]: self._unary(*row) for row in subscriber} | {"StreamingPull": streaming}
        return [
            grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", publishing),
            grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", subscribing),
        ]

    def _unary(self, method: str, request_type: Any, resource: str, act: Act) -> Any:
        named: Callable[[Raw], str] = attrgetter(resource)
        waits = inspect.iscoroutinefunction(act)

        async def call(request: Raw, context: Any) -> Raw:
            name, messages = named(request), getattr(request, "messages", ())
            try:
                await self._enter(method, name, messages)
                response = await act(request, context) if waits else act(request)
                self._leave(method, name, messages)
            except Refusal as refusal:
                await context.abort(refusal.code, refusal.details)
            return response

        return grpc.unary_unary_rpc_method_handler(
            call, request_type.pb().FromString, lambda response: response.SerializeToString()
        )

    async def _enter(self, method: str, resource: str, messages: Any = ()) -> None:
        """Runs before every call: counts the call. Faults may delay or refuse the call."""
        self.counts[method] += 1
        if delay := self._faults.hit(Delay, resource, messages, method):
            with suppress(TimeoutError):
                async with asyncio.timeout(delay.seconds):
                    await self._stopped.wait()
        if self._stopped.is_set():
            raise _shutting_down()
        if fault := self._faults.hit(Fail, resource, messages, method):
            raise Refusal(fault.code, "an injected fault")

    def _leave(self, method: str, resource: str, messages: Any) -> None:
        """Runs after every call. A fault may lose the reply."""
        if lost := self._faults.hit(LoseReply, resource, messages, method):
            raise Refusal(lost.code, "the reply was lost")

    def _acknowledge(self, request: Raw) -> Raw:
        subscription = self._broker.subscription(request.subscription)
        require(request.ack_ids, "no ack ids")
        _check_size(request)
        subscription.acknowledge(request.ack_ids)
        return Empty()

    def _modify(self, request: Raw) -> Raw:
        subscription = self._broker.subscription(request.subscription)
        require(request.ack_ids, "no ack ids")
        _check_size(request)
        subscription.modify(request.ack_ids, [request.ack_deadline_seconds] * len(request.ack_ids))
        return Empty()

    async def _pull(self, request: Raw, context: Any) -> Raw:
        subscription = self._broker.subscription(request.subscription)
        require(request.max_messages > 0, "max_messages must be positive")
        response = PullResponse()
        patience = min(PULL_SECONDS, PULL_MARGIN * (context.time_remaining() or PULL_SECONDS))
        with self._received(subscription, Receiver(next(self.numbers))) as receiver, suppress(TimeoutError):
            async with asyncio.timeout(0 if request.return_immediately else patience):
                while not _fill(response, subscription, receiver, request.max_messages):
                    if receiver.refusal:
                        raise receiver.refusal
                    receiver.wake.clear()
                    await receiver.wake.wait()
        return response

    async def _streaming_pull(self, requests: AsyncIterator[Raw], context: Any) -> None:
        try:
            first = await anext(requests, None)
            if first is None:
                return
            await self._enter("StreamingPull", first.subscription)
            subscription = self._broker.subscription(first.subscription)
            require(10 <= first.stream_ack_deadline_seconds <= 600, "stream_ack_deadline_seconds: 10 to 600")
            with self._received(subscription, _receiver(next(self.numbers), first)) as receiver:
                _apply(subscription, receiver, first)
                await _stream(subscription, receiver, requests, context)
        except Refusal as refusal:
            await context.abort(refusal.code, refusal.details)

    @contextmanager
    def _received(self, subscription: Subscription, receiver: Receiver) -> Iterator[Receiver]:
        for receivers in (self._receivers, subscription.receivers):
            receivers.add(receiver)
        try:
            yield receiver
        finally:
            for receivers in (self._receivers, subscription.receivers):
                receivers.discard(receiver)


async def _stream(
    subscription: Subscription, receiver: Receiver, requests: AsyncIterator[Raw], context: Any
) -> None:
    reading = asyncio.create_task(_read(subscription, receiver, requests))
    try:
        while not receiver.closed:
            response = StreamingPullResponse()
            if _fill(response, subscription, receiver):
                response.subscription_properties.SetInParent()
                await context.write(response)
            else:
                receiver.wake.clear()
                await receiver.wake.wait()
        if receiver.refusal:
            raise receiver.refusal
    finally:
        reading.cancel()
        await asyncio.wait({reading})


async def _read(subscription: Subscription, receiver: Receiver, requests: AsyncIterator[Raw]) -> None:
    """Apply the client's requests until the client closes its half of the stream."""
    try:
        async for request in requests:
            require(not request.subscription, "the subscription must only be in the first request")
            require(
                not (
                    request.max_outstanding_messages
                    or request.max_outstanding_bytes
                    or request.protocol_version
                ),
                "flow control and protocol version must only be in the first request",
            )
            _apply(subscription, receiver, request)
        receiver.close()
    except Refusal as refusal:
        receiver.close(refusal)


def _apply(subscription: Subscription, receiver: Receiver, request: Raw) -> None:
    _check_size(request)
    deadlines, ack_ids = request.modify_deadline_seconds, request.modify_deadline_ack_ids
    require(len(deadlines) == len(ack_ids), "as many deadlines as ack ids are needed")
    if request.stream_ack_deadline_seconds:
        require(10 <= request.stream_ack_deadline_seconds <= 600, "stream_ack_deadline_seconds: 10 to 600")
        receiver.deadline_seconds = request.stream_ack_deadline_seconds
    if request.ack_ids:
        subscription.acknowledge(request.ack_ids)
    if ack_ids:
        subscription.modify(ack_ids, deadlines)


def _receiver(number: int, first: Raw) -> Receiver:
    receiver = Receiver(number)
    if first.max_outstanding_messages > 0:
        receiver.max_messages = first.max_outstanding_messages
    if first.max_outstanding_bytes > 0:
        receiver.max_bytes = first.max_outstanding_bytes
    return receiver


def _fill(response: Raw, subscription: Subscription, receiver: Receiver, most: int = 1000) -> bool:
    """Put messages into `response`. False if there are none."""
    if receiver.closed:
        return False
    add = response.received_messages.add
    counting = subscription.settings.HasField("dead_letter_policy")
    for ack_id, entry in subscription.take(receiver, most):
        attempt = entry.failures + 1 if counting else 0
        add(ack_id=ack_id, message=entry.message, delivery_attempt=attempt)
    return bool(response.received_messages)


def _check_size(request: Raw) -> None:
    require(request.ByteSize() <= MAX_ACK_REQUEST_BYTES, "the request is larger than 512 KiB")


def _shutting_down() -> Refusal:
    return Refusal(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
