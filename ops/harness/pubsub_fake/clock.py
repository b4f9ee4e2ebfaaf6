"""The broker's clock: ack deadlines, back-off, retention and publish times all read it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds since 1970. It runs on by itself and jumps when a test says so; `moved` is called after a jump."""

    def __init__(self) -> None:
        self.moved: Callable[[], None] = lambda: None
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """What falls due by it has happened when this returns."""
        self._ahead += seconds
        self.moved()
