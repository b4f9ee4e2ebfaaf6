"""Claims suspects: jobs that ran on a worker that died, beside others. They run where a second crash tells who it was.

A worker that holds nothing takes one job that must run alone, or a few other suspects together, and claims nothing else
while they run. If every worker is busy, the oldest ones claim nothing more until they have become empty. At most a
quarter of the workers, and at least one, serve suspects at the same time: the other jobs keep the rest. A suspect waits
for the suspects before it, and for the longest attempt on one worker.

Stuck functions, whose attempts have ended, do not count as held: a function that never returns would keep suspects
waiting for ever. They still have their slots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final, LiteralString

from engine.model import Attempt
from engine.moves import claim_suspects
from engine.storage.connections import Connection, Pool, borrow
from engine.storage.literals import array
from engine.storage.statements import fetchall
from engine.storage.throttle import Throttle
from worker.source import Source

LOOK_SECONDS: Final = 1.0
MAX_LOOK_SECONDS: Final = 0.05
"""The most that the throttle counts for a look, see Throttle."""
PATIENCE_SECONDS: Final = 5.0
"""How long a suspect waits for a worker that is empty by itself."""
COUNTED: Final = 1000

SHARE: Final = 0.25
"""The share of the workers that may serve suspects at the same time."""

# `older` counts the workers before this one that could run such a suspect, `serving` those that run some now.
WAITING: LiteralString = """
SELECT count(*), count(*) FILTER (WHERE ready_at < clock_timestamp() - %(patience)s * interval '1 second'),
       (SELECT count(*) FROM workers w WHERE w.id < %(worker_id)s AND min(s.preset) = ANY (w.presets)) AS older,
       (SELECT count(DISTINCT o.worker_id) FROM outbox o WHERE o.suspicion > 0 AND o.status = 'leased') AS serving,
       (SELECT count(*) FROM workers) AS workers
FROM (SELECT preset, coalesce(ready_at, clock_timestamp()) AS ready_at FROM outbox
      WHERE suspicion > 0 AND status IN ('ready', 'published') AND preset = ANY (%(presets)s::text[])
      LIMIT %(counted)s) s
"""


class SuspectClaims:
    """The claims of one worker with `slots`: suspects first, and other jobs from `source`."""

    def __init__(self, pool: Pool, source: Source, presets: Sequence[str], slots: int) -> None:
        self._pool = pool
        self._source = source
        self._presets = list(presets)
        self._slots = slots
        self._throttle = Throttle(LOOK_SECONDS, most=MAX_LOOK_SECONDS)
        self._running = False
        self._emptying = False

    @property
    def exclusive(self) -> bool:
        """Whether the worker must claim nothing else, because suspects run here or wait for it to be empty."""
        return self._running or self._emptying

    async def claim_first(self, worker_id: int, room: int, *, held: int) -> list[Attempt]:
        """Suspects, or else up to `room` other jobs unless the worker must claim nothing else. See `claim`."""
        attempts = await self.claim(worker_id, room, held=held)
        if self.exclusive:
            await self._source.hold()
        elif room:
            return await self._source.claim(worker_id, room)
        return attempts

    async def claim(self, worker_id: int, room: int, *, held: int) -> list[Attempt]:
        """The suspects to run now, as a rule none. `held` is the number of attempts that the worker holds.

        Looks once a second, and as soon as suspects that ran here have ended. Raises DatabaseUnavailable.
        """
        ended = self._running and not held
        self._running = self._running and not ended
        if self._running or not (ended or self._throttle.due):
            return []
        began = time.monotonic()
        try:
            async with borrow(self._pool) as conn:
                attempts = await self._found(conn, worker_id, room, held)
        finally:
            self._throttle.ended(began)
        self._running = bool(attempts)
        return attempts

    async def _found(self, conn: Connection, worker_id: int, room: int, held: int) -> list[Attempt]:
        asked = {
            "worker_id": worker_id,
            "presets": array(self._presets),
            "patience": PATIENCE_SECONDS,
            "counted": COUNTED,
        }
        [(waiting, overdue, older, serving, workers)] = await fetchall(conn, WAITING, asked)
        together = max(1, math.isqrt(self._slots))
        allowed = max(1, math.floor(workers * SHARE)) - serving
        # An empty worker that finds none to claim goes on with other jobs: somebody else has the suspects.
        self._emptying = held > 0 and older < min(math.ceil(overdue / together), allowed)
        if held or not room or not waiting or allowed <= 0:
            return []
        return await claim_suspects(conn, worker_id, self._presets, min(together, room))
