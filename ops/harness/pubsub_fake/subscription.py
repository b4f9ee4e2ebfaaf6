"""One subscription: its waiting messages, its unacknowledged messages and its receivers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from ops.harness.pubsub_fake.clock import Clock
from ops.harness.pubsub_fake.faults import DropAcks, Duplicate, Faults, Reorder
from ops.harness.pubsub_fake.limits import Raw, Refusal, require, seconds

T = TypeVar("T")

RESPONSE_MESSAGES = 1000
RESPONSE_BYTES = 4_000_000
SHUFFLED = 1000
ACK_ID_LENGTH = 176
"""Google's ack ids are about as long, and requests with ack ids are limited in bytes."""


class Log(Generic[T]):
    """Items in the order in which they happened. `total` also counts items that are not kept."""

    def __init__(self, kept: bool) -> None:
        self.items: list[T] = []
        self.total = 0
        self._kept = kept

    def append(self, item: T) -> None:
        self.total += 1
        if self._kept:
            self.items.append(item)


@dataclass(slots=True, eq=False)
class Entry:
    """A message in a subscription. `copies` counts waiting and outstanding copies: more than one after a duplicate."""

    message: Raw
    size: int
    published_at: float
    failures: int = 0
    copies: int = 1
    done: bool = False


@dataclass(slots=True, eq=False)
class Receiver:
    """A stream or a pull that takes messages, with its flow control.

    Outstanding messages are counted here until they are acknowledged, refused or overdue, by any client.
    """

    number: int
    deadline_seconds: int | None = None
    max_messages: float = math.inf
    max_bytes: float = math.inf
    messages: int = 0
    bytes: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    refusal: Refusal | None = None

    def close(self, refusal: Refusal | None = None) -> None:
        self.closed = True
        self.refusal = self.refusal or refusal
        self.wake.set()


@dataclass(slots=True, eq=False)
class Delivery:
    entry: Entry
    deadline: float
    receiver: Receiver


class Subscription:
    """`forward(entry, subscription)` publishes to the dead-letter topic, and returns whether there is one."""

    def __init__(
        self,
        settings: Raw,
        clock: Clock,
        faults: Faults,
        rng: Random,
        forward: Callable[[Entry, Subscription], bool],
        keep_history: bool,
    ) -> None:
        self.settings = settings
        self.receivers: set[Receiver] = set()
        self.delivered: Log[str] = Log(keep_history)
        self.acked: Log[str] = Log(keep_history)
        self.nacked: Log[str] = Log(keep_history)
        self.expired: Log[str] = Log(keep_history)
        self.backlog: deque[Entry] = deque()
        self.outstanding: dict[str, Delivery] = {}
        self._resting: list[tuple[float, int, Entry]] = []
        self._earliest = math.inf
        self._numbers = itertools.count(1)
        self._clock = clock
        self._faults = faults
        self._rng = rng
        self._forward = forward

    @property
    def name(self) -> str:
        return str(self.settings.name)

    def offer(self, entries: Iterable[Entry]) -> None:
        self.backlog.extend(entries)
        self._wake()

    def take(self, receiver: Receiver, most: int = RESPONSE_MESSAGES) -> Iterator[tuple[str, Entry]]:
        """Yield at most a fair share of the waiting messages, within the receiver's flow control, with new ack ids."""
        if not self.backlog or self._faults.stalls(self.name, receiver.number):
            return
        if self._faults.hit(Reorder, self.name):
            self._shuffle()
        now = self._clock.now()
        oldest = now - self.settings.message_retention_duration.seconds
        deadline = now + (receiver.deadline_seconds or self.settings.ack_deadline_seconds)
        self._earliest = min(self._earliest, deadline)
        prefix = f"{self.name}:"
        duplicating = self._faults.any(Duplicate)
        share = -(-len(self.backlog) // max(1, len(self.receivers)))
        taken = size = 0
        while self.backlog and taken < min(most, share) and size < RESPONSE_BYTES and has_room(receiver):
            entry = self.backlog.popleft()
            if entry.done or entry.published_at < oldest:
                continue
            if duplicating and entry.copies == 1 and self._faults.hit(Duplicate, self.name, (entry.message,)):
                entry.copies += 1
                self.backlog.appendleft(entry)
            ack_id = f"{prefix}{next(self._numbers)}".ljust(ACK_ID_LENGTH, "=")
            self.outstanding[ack_id] = Delivery(entry, deadline, receiver)
            receiver.messages += 1
            receiver.bytes += entry.size
            taken += 1
            size += entry.size
            self.delivered.append(entry.message.message_id)
            yield ack_id, entry

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """Acknowledge messages. Used and overdue ids are ignored, as the service does without exactly-once delivery."""
        dropping = self._faults.any(DropAcks)
        for ack_id, delivery in self._known(ack_ids):
            if dropping and self._faults.hit(DropAcks, self.name, (delivery.entry.message,)):
                continue
            self._leave(ack_id, delivery)
            delivery.entry.copies -= 1
            if not delivery.entry.done:
                delivery.entry.done = True
                self.acked.append(delivery.entry.message.message_id)
        self._wake()

    def modify(self, ack_ids: Iterable[str], deadlines: Iterable[int]) -> None:
        now = self._clock.now()
        wanted = dict(zip(ack_ids, deadlines, strict=True))
        require(
            all(0 <= each <= 600 for each in wanted.values()), "an ack deadline must be between 0 and 600 s"
        )
        for ack_id, delivery in self._known(wanted):
            deadline = wanted[ack_id]
            if deadline == 0:
                self.nacked.append(delivery.entry.message.message_id)
                self._leave(ack_id, delivery)
                self._failed(delivery.entry, now)
            else:
                delivery.deadline = now + deadline
                self._earliest = min(self._earliest, delivery.deadline)
        self._wake()

    def tick(self) -> None:
        """Let overdue deliveries fail, and queue messages again whose back-off has ended."""
        now = self._clock.now()
        if now >= self._earliest:
            self._expire(now)
        if self._resting and self._resting[0][0] <= now:
            while self._resting and self._resting[0][0] <= now:
                self.backlog.append(heapq.heappop(self._resting)[2])
            self._wake()

    def close(self, refusal: Refusal) -> None:
        for receiver in self.receivers:
            receiver.close(refusal)

    def _expire(self, now: float) -> None:
        overdue = [(ack_id, each) for ack_id, each in self.outstanding.items() if each.deadline <= now]
        for ack_id, delivery in overdue:
            self._leave(ack_id, delivery)
            self.expired.append(delivery.entry.message.message_id)
            self._failed(delivery.entry, now)
        self._earliest = min((each.deadline for each in self.outstanding.values()), default=math.inf)
        self._wake()

    def _known(self, ack_ids: Iterable[str]) -> list[tuple[str, Delivery]]:
        """Each outstanding delivery, once. An id that was never of this subscription refuses the whole request."""
        known = {}
        for ack_id in ack_ids:
            if delivery := self.outstanding.get(ack_id):
                known[ack_id] = delivery
            else:
                require(ack_id.startswith(f"{self.name}:"), f"no ack id of this subscription: {ack_id!r}")
        return list(known.items())

    def _leave(self, ack_id: str, delivery: Delivery) -> None:
        del self.outstanding[ack_id]
        delivery.receiver.messages -= 1
        delivery.receiver.bytes -= delivery.entry.size

    def _failed(self, entry: Entry, now: float) -> None:
        entry.copies -= 1
        if entry.done or entry.copies:
            return
        entry.failures += 1
        if self._dead_lettered(entry):
            entry.done = True
            return
        entry.copies = 1
        if not self.settings.HasField("retry_policy"):
            self.backlog.append(entry)
            return
        policy = self.settings.retry_policy
        pause = seconds(policy.minimum_backoff) * 2 ** min(entry.failures - 1, 32)
        due = now + min(pause, seconds(policy.maximum_backoff))
        heapq.heappush(self._resting, (due, next(self._numbers), entry))

    def _dead_lettered(self, entry: Entry) -> bool:
        """Whether the message was forwarded. Without the topic the message stays here and is delivered again."""
        if not self.settings.HasField("dead_letter_policy"):
            return False
        return entry.failures >= self.settings.dead_letter_policy.max_delivery_attempts and self._forward(
            entry, self
        )

    def _shuffle(self) -> None:
        first = [self.backlog.popleft() for _ in range(min(SHUFFLED, len(self.backlog)))]
        self._rng.shuffle(first)
        self.backlog.extendleft(first)

    def _wake(self) -> None:
        for receiver in self.receivers:
            receiver.wake.set()


def has_room(receiver: Receiver) -> bool:
    return receiver.messages < receiver.max_messages and receiver.bytes < receiver.max_bytes
