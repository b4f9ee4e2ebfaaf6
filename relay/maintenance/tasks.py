"""The periodic tasks of maintenance, and the health of each."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from engine.errors import OutriderError
from engine.storage.connections import Connection
from engine.storage.faults import by_blame, told
from engine.tables.relay_status import RelayStatus

BATCH: Final = 1000
"""Rows that one run of a task changes at most."""
TASK_SECONDS: Final = 60.0
"""How long one run of a task on a borrowed connection may take, unless the task says otherwise."""
VITAL: Final = ("promote", "lapse")
"""The tasks without which jobs stop moving; the others can wait."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """`work(conn, limit)` changes up to `limit` rows and returns how many.

    The task runs every `period` seconds, and again at once after a full batch. A run may take `seconds`.
    """

    name: str
    period: float
    work: Callable[[Connection, int], Awaitable[int]]
    seconds: float = TASK_SECONDS


class TaskHealth:
    """Which tasks fail at present, since when and with what error."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[float, BaseException]] = {}
        self._well_since = time.monotonic()
        self._succeeded: dict[str, float] = {}

    def failed(self, task: str, error: BaseException) -> None:
        """Remember the error, and log it unless the task failed in the same way before."""
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
        """The relay's report: maintenance is failing while a vital task fails. `detail` has the error of any task."""
        now = time.monotonic()
        # A vital task first, then the one that has failed for longest.
        faults = sorted((name not in VITAL, since, name) for name, (since, _) in self._faults.items())
        if not faults:
            return RelayStatus("maintenance", "maintaining", now - self._well_since, None)
        can_wait, since, name = faults[0]
        error = self._faults[name][1]
        line, *_ = (str(error).strip() or type(error).__name__).split("\n")
        if can_wait:
            return RelayStatus("maintenance", "maintaining", now - self._well_since, f"{name}: {line}")
        return RelayStatus("maintenance", "failing", now - since, f"{name}: {line}")
