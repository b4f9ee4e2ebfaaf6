"""A circuit breaker: after a failure nothing is sent for a while, then one request at a time probes."""

from __future__ import annotations

import random
import time
from typing import Final

from engine.pubsub.client import Fault

FIRST_SECONDS: Final = 0.1
MAX_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 5.0
"""How often a fault that only an operator can fix is probed."""


class Breaker:
    """Closed until a request fails, then open for a time that doubles with each failed probe, with jitter.

    A sender asks `pause` first. While the breaker is not closed, one request at a time may go: the probe.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._backoff = FIRST_SECONDS
        self._open_until = 0.0
        self._since: float | None = None
        self._fault: Fault | None = None

    @property
    def closed(self) -> bool:
        return self._since is None

    @property
    def open_seconds(self) -> float:
        """For how many seconds no request has succeeded; 0 while closed."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def pause(self) -> float:
        """Seconds until the next request may be sent."""
        return max(0.0, self._open_until - time.monotonic())

    def fail(self, fault: Fault) -> bool:
        """Note a failed request. True if that is news: the breaker was closed, or open for another kind of fault.

        Further failures during the pause add nothing.
        """
        if self.pause:
            return False
        now = time.monotonic()
        news, self._fault = fault is not self._fault, fault
        self._since = now if self._since is None else self._since
        if fault is Fault.MISCONFIGURED:
            self._open_until = now + PROBE_SECONDS
        else:
            self._open_until = now + self._rng.uniform(0.5, 1.0) * self._backoff
            self._backoff = min(self._backoff * 2, MAX_SECONDS)
        return news

    def succeed(self) -> bool:
        """Note a successful request. True if that closed the breaker."""
        closed = not self.closed
        self._since, self._fault, self._open_until, self._backoff = None, None, 0.0, FIRST_SECONDS
        return closed
