"""One topic as its relay sees the broker: the requests to it, its breaker, and whether it takes messages."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from engine.cancellation import survivable
from engine.process.loops import note_fault
from engine.pubsub.breaker import Breaker
from engine.pubsub.client import Fault
from engine.pubsub.messages import Message
from engine.tables.relay_status import RelayStatus, State, Subject
from engine.telemetry import tracing
from engine.telemetry.metrics import (
    BREAKER_OPEN,
    PUBLISH_ERRORS,
    PUBLISH_ROWS,
    PUBLISH_SECONDS,
    PUBLISHED_ROWS,
)
from relay.publishing.answers import Answer, judge
from relay.publishing.publisher import Publisher
from relay.publishing.request_size import RequestSize

LONE_PROBES: Final = 5
"""After so many failures in a row, a probe has one row, each time another one: a row may be what the broker cannot
answer."""
HEALTHY_SECONDS: Final = 60.0
MAX_ALONE: Final = 4
"""For so long after a success, a message that fails alone is to blame itself, but only if fewer than MAX_ALONE have
done so since. Else it is the broker: a topic may be deleted, or a right taken away, at any moment."""
STATES: Final[Mapping[Fault | None, State]] = {
    None: "publishing",
    Fault.PASSING: "passing",
    Fault.MISCONFIGURED: "misconfigured",
}

log = structlog.get_logger()


class Broker:
    """Metrics name the topic by its `subject`, which settings do not change; logs and traces use the topic's name."""

    def __init__(self, subject: Subject, topic: str, publisher: Publisher) -> None:
        self.name = topic.rpartition("/")[2]
        self.size = RequestSize()
        self._subject = subject
        self._topic = topic
        self._publisher = publisher
        self._breaker = Breaker()
        self._failures = 0
        """Requests that failed since the last one that was answered."""
        self._taken_at = -math.inf
        """When the broker last took messages."""
        self._alone = 0
        """Failures of messages alone since then, see `failed_alone`."""
        self._seconds = PUBLISH_SECONDS.labels(subject)
        self._rows = PUBLISH_ROWS.labels(subject)
        self._taken = PUBLISHED_ROWS.labels(subject)
        self._show(None)

    @property
    def status(self) -> RelayStatus:
        """Whether publishing to the topic succeeds, and since when."""
        state, since, detail = self._state
        return RelayStatus(self._subject, state, time.monotonic() - since, detail)

    @property
    def pause(self) -> float:
        """Seconds until the next request may be sent."""
        return self._breaker.pause

    @property
    def closed(self) -> bool:
        """Whether the breaker is closed. Else the next request is a probe."""
        return self._breaker.closed

    @property
    def probes_apart(self) -> bool:
        """Whether a probe has one row, and each probe another one."""
        return self._failures >= LONE_PROBES

    @property
    def healthy(self) -> bool:
        """Whether the broker has taken messages of the topic just now, and few have failed alone since."""
        return self._alone < MAX_ALONE and time.monotonic() - self._taken_at < HEALTHY_SECONDS

    async def ask(self, messages: Sequence[Message], size: int) -> Answer | None:
        """Publish messages of so many bytes in one request. Returns what is wrong, or None if they were taken."""
        self._rows.observe(len(messages))
        contexts = [_context(message) for message in messages]
        try:
            with (
                self._seconds.time(),
                tracing.publish(self.name, contexts, len(messages)),
                self.size.timing(size),
            ):
                await self._publisher.publish(self._topic, messages)
        except BaseException as error:
            if not survivable(error):
                raise
            answer = judge(error)
            PUBLISH_ERRORS.labels(self._subject, answer.code.lower()).inc()
            if answer.code == "ERROR":
                note_fault("publish", error)
            return answer
        self._taken.inc(len(messages))
        self._taken_at, self._alone = time.monotonic(), 0
        return None

    def failed_alone(self, answer: Answer, *, before: bool) -> None:
        """Note that a message has failed alone, and none was taken with it.

        One that has done so `before` says nothing new of the broker, unless the answer is about the configuration.
        """
        if not before or answer.fault is Fault.MISCONFIGURED:
            self._alone += 1

    def answered(self) -> None:
        """Note that the broker is there: it has taken messages, or refused one."""
        seconds = self._breaker.open_seconds
        self._failures = 0
        if self._breaker.succeed():
            log.info("breaker.closed", topic=self.name, after_seconds=round(seconds, 1))
            self._show(None)

    def unanswered(self, answer: Answer) -> float:
        """Note that the broker is away, or misconfigured: no message is to blame. Returns the seconds of its pause."""
        if not self._breaker.pause:
            self._failures += 1
        if self._breaker.fail(answer.fault):
            log.warning(
                "breaker.opened", topic=self.name, reason=answer.code, error=answer.details, fix=answer.fix
            )
            self._show(answer.fault, str(answer))
        return self._breaker.pause

    def _show(self, kind: Fault | None, detail: str | None = None) -> None:
        self._state = (STATES[kind], time.monotonic(), detail)
        for each in (Fault.PASSING, Fault.MISCONFIGURED):
            BREAKER_OPEN.labels(self._subject, each.value).set(each is kind)


def _context(message: Message) -> str | None:
    """The trace of a message. SQL may have written anything that is JSON as its attributes."""
    attributes = message.attributes
    found = attributes.get("traceparent") if isinstance(attributes, Mapping) else None
    return found if isinstance(found, str) else None
