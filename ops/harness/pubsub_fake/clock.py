"""The broker's clock: ack deadlines, back-off, retention and publish times all read it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds since 1970. The clock runs with real time, and `advance` lets it jump. `moved` is called after a jump."""

    def __init__(self) -> None:
        self.moved: Callable[[], None] = lambda: None
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Jump forward. When `advance` returns, everything that fell due has happened."""
        self._ahead += seconds
        self.moved()
