"""Plain functions that outlived their time-out: each keeps its slot until it returns."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import structlog

from engine.executor import Execution

NEVER: Final = float("inf")

log = structlog.get_logger()


class LeftBehind:
    """What was left behind of `slots` slots, and whether that has been all of them for `patience` seconds."""

    def __init__(self, slots: int, patience: float) -> None:
        self._slots = slots
        self._patience = patience
        self._left: set[Execution] = set()
        self._since = NEVER

    def look(self, occupied: Collection[Execution]) -> None:
        """Log what is new among them."""
        left = {execution for execution in occupied if execution.ended}
        for execution in left - self._left:
            log.warning("attempt.left_behind", job_id=execution.claimed.job.id, attempt=execution.attempt)
        self._left = left
        self._since = min(self._since, time.monotonic()) if len(left) >= self._slots else NEVER

    @property
    def exhausted(self) -> bool:
        """Whether only a new process gets rid of their threads."""
        return time.monotonic() - self._since > self._patience

    def __len__(self) -> int:
        return len(self._left)
