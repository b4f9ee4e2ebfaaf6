"""What a worker thinks of its stream: whether it is lost, whether it has stalled, and whether messages went astray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import structlog

from engine.errors import BrokerUnavailable
from engine.model import Attempt
from engine.pubsub.breaker import Breaker
from engine.pubsub.client import PROVISION, Fault
from engine.telemetry.metrics import STREAM_STALLS
from worker.stream import StreamLost

SILENT_SECONDS: Final = 10.0
"""A stream has stalled when it delivers nothing for this long although a job was published meanwhile."""
MAX_STALLS: Final = 3
MAX_DOUBLINGS: Final = 4
LOST_SECONDS: Final = 30.0
"""How long the worker stays ready without a stream. Its jobs come from the outbox meanwhile."""
ASTRAY_SECONDS: Final = 120.0
"""How long messages may go to a stream that is lost. The emulator delivers to a dead call for 90 s."""
NEVER: Final = float("-inf")

log = structlog.get_logger()


class StreamHealth:
    """Judges the streams of one subscription, which are opened one after the other.

    A stream is judged only by jobs that were published after it was opened, and each stall in a row doubles the
    patience: a new stream cannot deliver what was sent to the stream before, and must not be closed for that.
    """

    def __init__(self, subscription: str) -> None:
        self._subscription = subscription
        self._breaker = Breaker()
        self._opened = self._listening = time.monotonic()
        self._missed: float | None = None
        self._lost = NEVER
        self._stalls = 0

    @property
    def pause(self) -> float:
        """Seconds until the next stream may be opened."""
        return self._breaker.pause

    @property
    def astray(self) -> bool:
        """Whether messages may be on their way to a stream that is lost."""
        return not self._breaker.closed or time.monotonic() - self._lost < ASTRAY_SECONDS

    def check(self) -> None:
        """A readiness check."""
        if self._stalls >= MAX_STALLS:
            raise BrokerUnavailable(f"the last {self._stalls} Pub/Sub streams delivered no message")
        if self._breaker.open_seconds > LOST_SECONDS:
            raise BrokerUnavailable(f"no Pub/Sub stream for {self._breaker.open_seconds:.0f} s")

    def opened(self) -> None:
        """Note that the next stream is opened."""
        self._opened = time.monotonic()
        self.listened()

    def listened(self) -> None:
        """Note that the stream is read from now on, or has been read: its silence counts from now."""
        self._listening, self._missed = time.monotonic(), None

    def heard(self) -> None:
        """Note that the stream has brought messages."""
        self._stalls = 0
        self.listened()
        self.established()

    def established(self) -> None:
        """Note that the stream is connected and was not refused."""
        seconds = self._breaker.open_seconds
        if self._breaker.succeed():
            log.info("stream.found", subscription=self._subscription, after_seconds=round(seconds, 1))
            self._lost = time.monotonic()

    def lost(self, lost: StreamLost, *, quiet: bool) -> None:
        """Note the end of a stream that nobody closed, and log it once an outage unless `quiet`."""
        self._lost = time.monotonic()
        # A refused stream is handled like a misconfigured one: it is tried again, and logged with a fix.
        kind = Fault.MISCONFIGURED if lost.kind is Fault.REFUSED else lost.kind
        if self._breaker.fail(kind) and not quiet:
            log.warning(
                "stream.lost",
                subscription=self._subscription,
                reason=lost.reason.name,
                error=str(lost),
                fix=PROVISION if kind is Fault.MISCONFIGURED else None,
            )

    def missed(self, attempts: Sequence[Attempt]) -> None:
        """Note jobs that were published, and that no message has brought to a worker."""
        now = time.monotonic()
        for attempt in attempts:
            # Both times are the database's.
            published = now - (attempt.started_at - attempt.ready_at).total_seconds()
            if published > self._opened:
                since = max(published, self._listening)
                self._missed = since if self._missed is None else min(self._missed, since)

    def stalled(self) -> bool:
        """Whether the stream has stalled: a stream may die without an error. Says so once for each stream."""
        if self._missed is None:
            return False
        silent = time.monotonic() - self._missed
        if silent < SILENT_SECONDS * 2 ** min(self._stalls, MAX_DOUBLINGS):
            return False
        self._stalls += 1
        STREAM_STALLS.inc()
        log.warning("stream.stalled", subscription=self._subscription, silent_seconds=round(silent, 1))
        self._lost, self._missed = time.monotonic(), None
        return True
