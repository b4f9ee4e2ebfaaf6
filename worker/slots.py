"""What a worker has: attempts that run, outcomes that wait to be written, threads that are stuck, lost claims.

| | from | until |
|---|---|---|
| held | the claim | the outcome's write is acknowledged |
| occupied | the claim | the pipeline has really returned |
| stuck | the outcome is known, and the pipeline runs on | the pipeline has really returned |
| unacknowledged | the database shows an attempt as ours that was never held | its release |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import structlog

from worker.execution import Execution

NEVER: Final = float("inf")

Key = tuple[UUID, int]
"""(job_id, attempt number)"""

log = structlog.get_logger()


class Slots:
    """The `number` slots of a worker, and everything it holds.

    A slot is free again when its pipeline has returned. No more is claimed while as many outcomes wait to be written
    as there are slots. `wake` is called when there is room again after a claim that filled every slot.
    """

    def __init__(self, number: int, patience: float, wake: Callable[[], None]) -> None:
        self.number = number
        self.held: dict[Key, Execution] = {}
        self.occupied: set[Execution] = set()
        self.stuck = StuckThreads(number, patience)
        self.unacknowledged = UnacknowledgedClaims()
        self.full = False
        """Whether the last claim took all that there was room for: only then does somebody wait for room."""
        self._wake = wake

    @property
    def room(self) -> int:
        """How many to claim now.

        Half of the slots at a time: PostgreSQL claims the one half while Python runs the other.
        """
        room = min(self.number - len(self.occupied), 2 * self.number - len(self.held))
        return max(0, min(room, (self.number + 1) // 2))

    def take(self, execution: Execution) -> None:
        """It begins."""
        self.occupied.add(execution)
        self.held[execution.attempt.key] = execution

    def vacate(self, execution: Execution) -> None:
        """Its pipeline has returned."""
        self.occupied.discard(execution)
        self._changed()

    def drop(self, execution: Execution) -> None:
        """Its outcome has been written, or never will be."""
        self.held.pop(execution.attempt.key, None)
        self._changed()

    def _changed(self) -> None:
        if self.full:
            self._wake()


class StuckThreads:
    """Pipelines that run on though their attempt has ended, each in its slot: plain functions, as a rule."""

    def __init__(self, slots: int, patience: float) -> None:
        self._slots = slots
        self._patience = patience
        self._stuck: set[Execution] = set()
        self._since = NEVER

    def look(self, occupied: Collection[Execution]) -> None:
        """Find them among the occupied slots, and log the new ones."""
        stuck = {execution for execution in occupied if execution.ended}
        for execution in stuck - self._stuck:
            log.warning("attempt.left_behind", job_id=execution.attempt.job.id, attempt=execution.number)
        self._stuck = stuck
        self._since = min(self._since, time.monotonic()) if len(stuck) >= self._slots else NEVER

    @property
    def exhausted(self) -> bool:
        """Whether they have held every slot for `patience` seconds: only a new process gets rid of their threads."""
        return time.monotonic() - self._since > self._patience

    def __len__(self) -> int:
        return len(self._stuck)


class UnacknowledgedClaims:
    """Finds attempts that are leased to this worker and were never held: the reply to their claim was lost.

    A beat may also show an attempt whose claim is still on its way. Claims run one at a time and are counted, which
    tells the two apart.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self._seen: dict[Key, int] = {}

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """While a claim runs."""
        self.begun += 1
        try:
            yield
        finally:
            self.ended = self.begun

    def lost(self, not_held: set[Key]) -> set[Key]:
        """Of what a beat returned and nobody holds, the attempts to be released: returned twice running.

        An attempt is not among them while the claim that ran when it was first seen still runs, and may bring it.
        """
        lost = {key for key in not_held if key in self._seen and self._seen[key] <= self.ended}
        self._seen = {key: self._seen.get(key, self.begun) for key in not_held - lost}
        return lost
