"""What maintenance does again and again, and how it fares with it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from engine.db import Connection
from engine.relays import Standing

VITAL: Final = ("promote", "lapse")
"""The chores without which jobs stay where they are; the others can wait."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Chore:
    """`work(conn)` moves up to BATCH rows and returns how many; it runs each `period` seconds, and again while full."""

    name: str
    period: float
    work: Callable[[Connection], Awaitable[int]]


class Faults:
    """Which chores fail at present, since when and with what."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[float, str]] = {}
        self._well_since = time.monotonic()

    def failed(self, chore: str, error: Exception) -> None:
        said = str(error).strip()
        since, _ = self._faults.get(chore, (time.monotonic(), said))
        if chore not in self._faults:
            log.warning("chore.failed", chore=chore, error=said)
        self._faults[chore] = since, said

    def did(self, chore: str) -> None:
        if self._faults.pop(chore, None):
            log.info("chore.recovered", chore=chore)
            if chore in VITAL:
                self._well_since = time.monotonic()

    @property
    def standing(self) -> Standing:
        """What the relay tells: it is failing while a vital chore is, and says with what."""
        now = time.monotonic()
        faults = [(*self._faults[name], name) for name in VITAL if name in self._faults]
        if not faults:
            return Standing("maintenance", "maintaining", now - self._well_since, None)
        since, said, name = min(faults)
        line, *_ = said.split("\n")
        return Standing("maintenance", "failing", now - since, f"{name}: {line}")
