"""The periodic tasks of maintenance, and the health of each."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from engine.storage.connections import Connection
from engine.tables.relay_status import RelayStatus

BATCH: Final = 1000
"""Rows that one run of a task changes at most."""
VITAL: Final = ("promote", "lapse")
"""The tasks without which jobs stop moving; the others can wait."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """`work(conn)` changes up to BATCH rows and returns how many.

    The task runs every `period` seconds, and again at once after a full batch.
    """

    name: str
    period: float
    work: Callable[[Connection], Awaitable[int]]


class TaskHealth:
    """Which tasks fail at present, since when and with what error."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[float, str]] = {}
        self._well_since = time.monotonic()

    def failed(self, task: str, error: Exception) -> None:
        text = str(error).strip()
        since, _ = self._faults.get(task, (time.monotonic(), text))
        if task not in self._faults:
            log.warning("maintenance.failed", task=task, error=text)
        self._faults[task] = since, text

    def succeeded(self, task: str) -> None:
        if self._faults.pop(task, None):
            log.info("maintenance.recovered", task=task)
            if task in VITAL:
                self._well_since = time.monotonic()

    @property
    def status(self) -> RelayStatus:
        """The relay's report: maintenance is failing while a vital task fails, with the error of that task."""
        now = time.monotonic()
        faults = [(*self._faults[name], name) for name in VITAL if name in self._faults]
        if not faults:
            return RelayStatus("maintenance", "maintaining", now - self._well_since, None)
        since, text, name = min(faults)
        line, *_ = text.split("\n")
        return RelayStatus("maintenance", "failing", now - since, f"{name}: {line}")
