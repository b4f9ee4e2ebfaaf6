"""The accounts of a worker: running attempts, outcomes that wait to be written, stuck threads, and lost claims."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import structlog

from worker.execution import Execution

NEVER: Final = float("inf")

Key = tuple[UUID, int]
"""(job_id, attempt number)"""

log = structlog.get_logger()


class Slots:
    """The `number` slots of a worker, and the attempts that the worker holds.

    | | from | until |
    |---|---|---|
    | held | the claim | the outcome's write is acknowledged |
    | occupied | the claim | the pipeline has really returned |
    | stuck | the outcome is known, and the pipeline runs on | the pipeline has really returned |
    | unacknowledged | a heartbeat shows an attempt as leased here that was never held | its release |

    A slot is free again when its pipeline has returned. At most twice `number` attempts are held, those whose outcome
    waits to be written among them. `wake` is called when there is room again after a claim that filled the room.
    """

    def __init__(self, number: int, patience: float, wake: Callable[[], None]) -> None:
        self.number = number
        self.held: dict[Key, Execution] = {}
        self.occupied: set[Execution] = set()
        self.stuck = StuckThreads(number, patience)
        self.unacknowledged = UnacknowledgedClaims()
        self.full = False
        """Whether the last claim filled the room. Only then does the claim loop wait for room."""
        self._wake = wake

    @property
    def room(self) -> int:
        """How many jobs to claim now.

        At most half of the slots at a time: PostgreSQL claims one half while Python runs the other.
        """
        # `held` bounds the outcomes that pile up in memory while the database is slow or away.
        room = min(self.number - len(self.occupied), 2 * self.number - len(self.held))
        return max(0, min(room, (self.number + 1) // 2))

    def take(self, execution: Execution) -> None:
        """The attempt begins."""
        self.occupied.add(execution)
        self.held[execution.key] = execution

    def vacate(self, execution: Execution) -> None:
        """The attempt's pipeline has returned."""
        self.occupied.discard(execution)
        self._changed()

    def drop(self, execution: Execution) -> None:
        """The attempt's outcome has been written, or never will be."""
        self.held.pop(execution.key, None)
        self._changed()

    def named(self, task: asyncio.Task[Any]) -> dict[str, Any]:
        """The attempt that runs in `task`, as log lines name it; empty if none does."""
        for execution in list(self.held.values()):
            if execution.task is task:
                job = execution.attempt.job
                return {"job_id": job.id, "preset": job.preset, "attempt": execution.number}
        return {}

    def _changed(self) -> None:
        if self.full:
            self._wake()


class StuckThreads:
    """Pipelines that run on although their attempt has ended, each in its slot: usually plain functions in threads.

    Nothing can stop such a thread, so its slot stays occupied: otherwise threads would pile up without limit. A process
    is killed, and on a machine that is too busy to do so at once a new worker would find no more time.
    """

    def __init__(self, slots: int, patience: float) -> None:
        self._slots = slots
        self._patience = patience
        self._stuck: set[Execution] = set()
        self._since = NEVER

    def look(self, occupied: Collection[Execution]) -> None:
        """Find the stuck pipelines among the occupied slots, and log the new ones."""
        stuck = {execution for execution in occupied if execution.ended}
        for execution in stuck - self._stuck:
            log.warning("attempt.stuck", job_id=execution.attempt.job.id, attempt=execution.number)
        self._stuck = stuck
        for_good = [execution for execution in stuck if execution.pipeline.runs != "process"]
        self._since = min(self._since, time.monotonic()) if len(for_good) >= self._slots else NEVER

    @property
    def exhausted(self) -> bool:
        """Whether stuck pipelines have held every slot for `patience` seconds: only a new process frees the slots."""
        return time.monotonic() - self._since > self._patience

    def __len__(self) -> int:
        return len(self._stuck)


class UnacknowledgedClaims:
    """Finds attempts that are leased to this worker but were never held: the reply to their claim was lost.

    A heartbeat may also show an attempt whose claim has not returned yet. Claims run one at a time and are counted,
    to distinguish the two cases.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self._seen: dict[Key, int] = {}

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Count a claim while it runs."""
        self.begun += 1
        try:
            yield
        finally:
            self.ended = self.begun

    def lost(self, not_held: set[Key]) -> set[Key]:
        """The attempts to release, of those that a heartbeat returned but that are not held.

        An attempt is lost when two heartbeats in a row return it and the claim that ran at the first one has ended.
        Until then that claim may still bring the attempt.
        """
        lost = {key for key in not_held if key in self._seen and self._seen[key] <= self.ended}
        self._seen = {key: self._seen.get(key, self.begun) for key in not_held - lost}
        return lost
