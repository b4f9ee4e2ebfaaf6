"""Refuses what the service refuses, by its published quotas and resource descriptions."""

from __future__ import annotations

import re
from typing import Any

import grpc

MAX_MESSAGES = 1000
MAX_REQUEST_BYTES = 10_000_000
MAX_ACK_REQUEST_BYTES = 512 * 1024
MAX_ATTRIBUTES = 100
MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024
DEFAULT_DELIVERY_ATTEMPTS = 5
DEFAULT_MIN_BACKOFF_SECONDS = 10
MAX_BACKOFF_SECONDS = 600
DEFAULT_RETENTION_SECONDS = 7 * 24 * 3600
MAX_RETENTION_SECONDS = 31 * 24 * 3600
DEFAULT_TTL_SECONDS = 31 * 24 * 3600
NAME = re.compile(r"projects/[^/]+/(topics|subscriptions)/(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")

Raw = Any
"""A raw protobuf message; its types are not known to type checkers."""


class Refusal(Exception):
    """Becomes the call's status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


def require(condition: object, details: str) -> None:
    if not condition:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, details)


def check_name(name: str, kind: str) -> None:
    match = NAME.fullmatch(name)
    require(match and match[1] == kind, f"invalid resource name: {name!r} is not one of {kind}")


def check_publish(request: Raw) -> None:
    require(request.messages, "a request needs a message")
    require(len(request.messages) <= MAX_MESSAGES, "more than 1000 messages in a request")
    require(request.ByteSize() <= MAX_REQUEST_BYTES, "the request is larger than 10 MB")
    for message in request.messages:
        attributes = message.attributes
        require(message.data or attributes, "a message needs data or an attribute")
        if attributes:
            _check_attributes(attributes)
        require(len(message.ordering_key.encode()) <= MAX_ORDERING_KEY_BYTES, "an ordering key is too long")
    keys = {message.ordering_key for message in request.messages}
    require(len(keys) == 1, "the messages of a request must share their ordering key")


def _check_attributes(attributes: Raw) -> None:
    require(len(attributes) <= MAX_ATTRIBUTES, "more than 100 attributes")
    for key, value in attributes.items():
        # Google's own clients keep the trace of a message under the prefix `googclient_`.
        reserved = key.startswith("goog") and not key.startswith("googclient_")
        require(key and not reserved, f"{key!r} is no name for an attribute")
        require(len(key.encode()) <= MAX_KEY_BYTES, "an attribute's key is longer than 256 bytes")
        require(len(value.encode()) <= MAX_VALUE_BYTES, "an attribute's value is longer than 1024 bytes")


def check_subscription(settings: Raw) -> None:
    """Check the settings, and fill in the service's defaults."""
    settings.ack_deadline_seconds = settings.ack_deadline_seconds or 10
    require(10 <= settings.ack_deadline_seconds <= 600, "ack_deadline_seconds must be between 10 and 600")
    for unknown in ("enable_message_ordering", "enable_exactly_once_delivery", "filter"):
        if getattr(settings, unknown):
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"this fake has no {unknown}")
    if settings.push_config.push_endpoint:
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "this fake does not push")
    if not settings.HasField("message_retention_duration"):
        settings.message_retention_duration.seconds = DEFAULT_RETENTION_SECONDS
    retention = settings.message_retention_duration.seconds
    require(600 <= retention <= MAX_RETENTION_SECONDS, "retention must be between 10 minutes and 31 days")
    if not settings.HasField("expiration_policy"):
        settings.expiration_policy.ttl.seconds = DEFAULT_TTL_SECONDS
    ttl = settings.expiration_policy.ttl.seconds
    require(ttl == 0 or ttl >= 86400, "expiration_policy.ttl must be at least a day")
    _check_policies(settings)


def _check_policies(settings: Raw) -> None:
    if settings.HasField("dead_letter_policy"):
        policy = settings.dead_letter_policy
        check_name(policy.dead_letter_topic, "topics")
        policy.max_delivery_attempts = policy.max_delivery_attempts or DEFAULT_DELIVERY_ATTEMPTS
        require(5 <= policy.max_delivery_attempts <= 100, "max_delivery_attempts must be between 5 and 100")
    if settings.HasField("retry_policy"):
        retry = settings.retry_policy
        if not retry.HasField("minimum_backoff"):
            retry.minimum_backoff.seconds = DEFAULT_MIN_BACKOFF_SECONDS
        if not retry.HasField("maximum_backoff"):
            retry.maximum_backoff.seconds = MAX_BACKOFF_SECONDS
        least, most = seconds(retry.minimum_backoff), seconds(retry.maximum_backoff)
        require(
            0 <= least <= most <= MAX_BACKOFF_SECONDS, "back-off must be between 0 and 600 s, least first"
        )


def seconds(duration: Raw) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
