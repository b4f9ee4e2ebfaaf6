"""The periodic tasks of maintenance, and the health of each."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import structlog

from engine.errors import OutriderError
from engine.storage.connections import Connection
from engine.storage.faults import by_blame, told
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
        self._faults: dict[str, tuple[float, Exception]] = {}
        self._well_since = time.monotonic()
        self._succeeded: dict[str, float] = {}

    def failed(self, task: str, error: Exception) -> None:
        since, before = self._faults.get(task, (time.monotonic(), None))
        if not told(before, error):
            log_at = by_blame(log, error)
            log_at("maintenance.failed", task=task)
        self._faults[task] = since, error

    def succeeded(self, task: str) -> None:
        self._succeeded[task] = time.monotonic()
        if self._faults.pop(task, None):
            log.info("maintenance.recovered", task=task)
            if task in VITAL:
                self._well_since = time.monotonic()

    def check(self, seconds: float) -> None:
        """Raise OutriderError unless every vital task has succeeded within the last `seconds`."""
        for task in VITAL:
            at = self._succeeded.get(task)
            if at is None or time.monotonic() - at > seconds:
                since = "yet" if at is None else f"for {time.monotonic() - at:.0f} s"
                why = f": {self._faults[task][1]}" if task in self._faults else ""
                raise OutriderError(f"{task} has not succeeded {since}{why}")

    @property
    def status(self) -> RelayStatus:
        """The relay's report: maintenance is failing while a vital task fails, with the error of that task."""
        now = time.monotonic()
        faults = [(*self._faults[name], name) for name in VITAL if name in self._faults]
        if not faults:
            return RelayStatus("maintenance", "maintaining", now - self._well_since, None)
        since, error, name = min(faults, key=itemgetter(0))
        line, *_ = str(error).strip().split("\n")
        return RelayStatus("maintenance", "failing", now - since, f"{name}: {line}")
