"""The desired topics and subscriptions, and how the found ones differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Literal

from google.pubsub_v1.types import DeadLetterPolicy, ExpirationPolicy, RetryPolicy, Subscription

from engine.pubsub.client import Names

DELETED: Final = "_deleted-topic_"
JOBS_ACK_SECONDS: Final = 300
EVENTS_ACK_SECONDS: Final = 60
RETENTION: Final = timedelta(days=7)
MIN_BACKOFF: Final = timedelta(seconds=1)
MAX_BACKOFF: Final = timedelta(seconds=60)
MAX_DELIVERY_ATTEMPTS: Final = 100


class Step(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    RECREATE = "recreate"
    BY_HAND = "by hand"
    """The resource cannot be changed in place, and recreating it could lose messages that are still needed."""


@dataclass(frozen=True, slots=True)
class Change:
    """A fault of one resource, and the step that fixes it. `fields` are the fields to update."""

    step: Step
    kind: Literal["topic", "subscription"]
    resource: str
    found: str
    fields: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.resource.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.found}"

    @property
    def done(self) -> str:
        """The report of the step once it is taken."""
        match self.step:
            case Step.CREATE:
                return f"created {self.kind} {self.name}"
            case Step.RECREATE:
                return f"recreated {self.kind} {self.name}: {self.found}"
            case Step.UPDATE:
                return str(self)
            case Step.BY_HAND:
                return f"{self}: {self.fix}"

    @property
    def fix(self) -> str:
        if self.step is Step.BY_HAND:
            return "read the remaining messages, delete the subscription, and run `outrider provision`"
        return "run `outrider provision`"


def desired(names: Names) -> list[Subscription]:
    """The subscription of each topic.

    Only the jobs' subscription has a dead-letter policy, as a safety net for messages that end every worker. A worker
    itself dead-letters messages that it cannot decode, and nacks messages only when it drains.
    """
    net = DeadLetterPolicy(dead_letter_topic=names.dead_letters, max_delivery_attempts=MAX_DELIVERY_ATTEMPTS)
    return [
        _subscription(names.jobs, JOBS_ACK_SECONDS, net),
        _subscription(names.results, EVENTS_ACK_SECONDS),
        _subscription(names.dead_letters, EVENTS_ACK_SECONDS),
    ]


def _subscription(topic: str, ack_seconds: int, net: DeadLetterPolicy | None = None) -> Subscription:
    return Subscription(
        name=Names.subscription(topic),
        topic=topic,
        ack_deadline_seconds=ack_seconds,
        message_retention_duration=RETENTION,
        # A policy without a ttl never expires the subscription. Without a policy the broker's default is 31 days.
        expiration_policy=ExpirationPolicy(),
        retry_policy=RetryPolicy(minimum_backoff=MIN_BACKOFF, maximum_backoff=MAX_BACKOFF),
        dead_letter_policy=net,
    )


def compare(names: Names, topics: Collection[str], subscriptions: Iterable[Subscription]) -> list[Change]:
    """The changes from the found topics (full names) and subscriptions to the desired ones, topics first."""
    found = {each.name: each for each in subscriptions}
    missing = [Change(Step.CREATE, "topic", topic, "missing") for topic in names if topic not in topics]
    judged = [_judged(names, wanted, found.get(wanted.name)) for wanted in desired(names)]
    return missing + [change for change in judged if change]


def _judged(names: Names, wanted: Subscription, found: Subscription | None) -> Change | None:
    def change(step: Step, why: str, fields: Iterable[str] = ()) -> Change:
        return Change(step, "subscription", wanted.name, why, tuple(fields))

    if found is None:
        return change(Step.CREATE, "missing")
    if found.detached:
        return change(Step.RECREATE, "detached from the topic")
    if found.topic == DELETED:
        # The remaining messages can still be read. Wake-ups are not needed; results and dead letters are.
        step = Step.RECREATE if wanted.topic == names.jobs else Step.BY_HAND
        return change(step, "the topic was deleted")
    if found.topic != wanted.topic:
        return change(Step.BY_HAND, f"belongs to {found.topic}")
    if found.filter:
        return change(Step.BY_HAND, f"the filter {found.filter!r} withholds messages")
    differences = _differences(wanted, found)
    return change(Step.UPDATE, "; ".join(differences.values()), differences) if differences else None


def _differences(wanted: Subscription, found: Subscription) -> dict[str, str]:
    """field → found and desired value in words. A policy reads the same after the broker has filled in defaults."""
    differences = {}
    for field, (label, worded) in FIELDS.items():
        has, should = worded(getattr(found, field)), worded(getattr(wanted, field))
        if has != should:
            differences[field] = f"{label} {has} → {should}"
    return differences


def _period(period: timedelta) -> str:
    """In days if they are whole, else in seconds."""
    if not period or period % timedelta(days=1):
        return _seconds(period)
    return "1 day" if period.days == 1 else f"{period.days} days"


def _seconds(period: timedelta) -> str:
    return f"{period.total_seconds():g} s"


def _expiry(policy: ExpirationPolicy | None) -> str:
    return f"after {_period(policy.ttl)}" if policy and policy.ttl else "never"


def _redelivery(policy: RetryPolicy | None) -> str:
    if not policy:
        return "at once"
    return f"after {_seconds(policy.minimum_backoff)} to {_seconds(policy.maximum_backoff)}"


def _net(policy: DeadLetterPolicy | None) -> str:
    if not policy or not policy.dead_letter_topic:
        return "none"
    return f"to {policy.dead_letter_topic} after {policy.max_delivery_attempts} deliveries"


FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], str]]]] = {
    "ack_deadline_seconds": ("ack deadline", "{} s".format),
    "message_retention_duration": ("retention", _period),
    "expiration_policy": ("expiry", _expiry),
    "retry_policy": ("redelivery", _redelivery),
    "dead_letter_policy": ("dead letters", _net),
}
"""The fields of a subscription that provisioning controls. Other fields stay as their owner has set them."""
