"""Bounds the log lines about requests of nobody who is known, with which whoever reaches the port could fill a disk."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

BURST: Final = 10
LINES_PER_SECOND: Final = 1.0
REPORT_SECONDS: Final = 10.0

log = structlog.get_logger()


class LogQuota:
    """A token bucket. What does not pass is counted, and the count logged REPORT_SECONDS later."""

    def __init__(self) -> None:
        self._room = float(BURST)
        self._at = 0.0
        self._left_out = 0

    def allows(self) -> bool:
        """Whether one more line may be written now."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._room = min(BURST, self._room + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._room >= 1:
            self._room -= 1
            return True
        if not self._left_out:
            loop.call_later(REPORT_SECONDS, self._report)
        self._left_out += 1
        return False

    def _report(self) -> None:
        log.info("requests.unlogged", count=self._left_out)
        self._left_out = 0
