"""The sources of a consumer's attempts: in Postgres mode the outbox itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from engine.model import Attempt
from engine.moves import claim, claim_published
from engine.storage.connections import PinnedConnection
from engine.storage.scan_cursor import Marks, ScanCursor
from engine.storage.throttle import Throttle
from engine.tables.outbox import lanes_of
from engine.telemetry.metrics import CLAIM_SECONDS, FALLBACK_CLAIMS

READY_SECONDS: Final = 5.0
"""How long the fallback leaves a ready job to the relay."""
PUBLISHED_SECONDS: Final = 10.0
"""How long the fallback leaves a published job to its message."""
SCAN_SECONDS: Final = 1.0
MAX_SCAN_SECONDS: Final = 0.15
"""The most that the throttle counts for a scan, see Throttle."""
BUSY_SCAN_SECONDS: Final = 3.0
ASTRAY_SCAN_SECONDS: Final = 0.5
"""As PUBLISHED_SECONDS and BUSY_SCAN_SECONDS, while messages may be on their way to a stream that is lost."""
MAX_OVERDUE_SECONDS: Final = 0.025
"""As MAX_SCAN_SECONDS, for the scan of published jobs alone, which is one look into an index."""

CURSOR: Final = CLAIM_SECONDS.labels("cursor")
SWEEP: Final = CLAIM_SECONDS.labels("sweep")


class Source(Protocol):
    """Supplies a consumer with attempts."""

    takes_ready: bool
    """Whether it takes jobs as soon as they are ready, so that the worker asks to be told of them."""

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        """Lease up to `limit` attempts to the worker; empty when no job is due. Raises DatabaseUnavailable."""

    async def run(self, wake: Callable[[], None]) -> None:
        """Background work until drained. Calls `wake` when a claim may find jobs."""

    async def ready(self) -> None:
        """A readiness check: raises while the source can deliver nothing."""

    async def hold(self) -> None:
        """Leave what is at hand to other workers, because no claim follows for a while."""

    async def drain(self) -> None:
        """Stop the background work: no claim follows."""

    async def aclose(self) -> None:
        """Close the connections."""


class PostgresSource:
    """Claims from the outbox on a connection of its own: ready jobs, and jobs that were published in pubsub mode.

    Each sweep of the cursor looks for published jobs, too.
    """

    takes_ready = True

    def __init__(self, url: str, presets: Sequence[str]) -> None:
        self._conn = PinnedConnection(url, name="claim")
        self._presets = list(presets)
        self._cursor: ScanCursor[Attempt] = ScanCursor()

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        # The presets take turns, so that none starves another one of the same priority.
        self._presets.append(self._presets.pop(0))
        return await self._cursor.next(lambda marks: self._scan(worker_id, limit, marks))

    async def _scan(self, worker_id: int, limit: int, marks: Marks | None) -> list[Attempt]:
        lanes = lanes_of(self._presets, marks or {})
        with (SWEEP if marks is None else CURSOR).time():
            async with self._conn.use() as conn:
                found = await claim(conn, worker_id, lanes, limit)
                if marks is None and len(found) < limit:
                    found += await claim_published(conn, worker_id, self._presets, limit - len(found), age=0)
        return found

    async def run(self, wake: Callable[[], None]) -> None: ...

    async def ready(self) -> None: ...

    async def hold(self) -> None: ...

    async def drain(self) -> None: ...

    async def aclose(self) -> None:
        await self._conn.aclose()


class FallbackScan:
    """Claims jobs whose message should have come and has not, after a fault of the broker or a change of mode.

    After a full scan the next scan runs at once, to keep up, unless messages come: they name the same jobs, and would
    all be late. Otherwise a scan runs once a second, and scans take at most 1/20 of the time.
    """

    def __init__(self, conn: PinnedConnection, presets: Sequence[str]) -> None:
        self._conn = conn
        self._presets = list(presets)
        self._cursor: ScanCursor[Attempt] = ScanCursor()
        self._throttle = Throttle(SCAN_SECONDS, most=MAX_SCAN_SECONDS)
        self._full = False
        """Whether the last scan found as many jobs as were wanted."""
        self._overdue_throttle = Throttle(most=MAX_OVERDUE_SECONDS)
        self._found_ready, self._found_published = (
            FALLBACK_CLAIMS.labels(status).inc for status in ("ready", "published")
        )
        self.undelivered: list[Attempt] = []
        """The jobs of the last claim whose message has reached no worker."""

    async def claim(
        self, worker_id: int, limit: int, *, astray: bool = False, messages: bool = False
    ) -> list[Attempt]:
        """Like Source.claim, for a worker without a job at hand; sets `undelivered`.

        If messages may have gone `astray`, it waits for them less long. `messages` says that some have just come.
        """
        self.undelivered = []
        began = time.monotonic()
        if not (self._throttle.due or (self._full and not messages)):
            if astray:
                self.undelivered = await self.claim_overdue(worker_id, limit, astray=True)
            return self.undelivered
        self._presets.append(self._presets.pop(0))
        ready = await self._cursor.next(lambda marks: self._ready(worker_id, limit, marks))
        room = limit - len(ready)
        published = await self._published(worker_id, room, astray) if room else []
        self._full = len(published) == room
        self._throttle.ended(began)
        self._found_ready(len(ready))
        self._found_published(len(published))
        self.undelivered = published
        return ready + published

    async def claim_overdue(self, worker_id: int, limit: int, *, astray: bool = False) -> list[Attempt]:
        """Claim published jobs alone, every few seconds, even if the last claim was full.

        For a worker with messages at hand: otherwise a job whose message is lost would wait for as long as its
        subscription is busy. Ready jobs are left to the relay, which is at work.
        """
        began = time.monotonic()
        if not self._overdue_throttle.due_every(ASTRAY_SCAN_SECONDS if astray else BUSY_SCAN_SECONDS):
            return []
        published = await self._published(worker_id, limit, astray)
        self._overdue_throttle.ended(began)
        self._found_published(len(published))
        return published

    async def _ready(self, worker_id: int, limit: int, marks: Marks | None) -> list[Attempt]:
        async with self._conn.use() as conn:
            return await claim(
                conn, worker_id, lanes_of(self._presets, marks or {}), limit, age=READY_SECONDS
            )

    async def _published(self, worker_id: int, limit: int, astray: bool) -> list[Attempt]:
        age = ASTRAY_SCAN_SECONDS if astray else PUBLISHED_SECONDS
        async with self._conn.use() as conn:
            return await claim_published(conn, worker_id, self._presets, limit, age=age)
