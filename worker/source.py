"""Where a consumer's attempts come from: in Postgres mode straight from the outbox."""

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
PUBLISHED_SECONDS: Final = 10.0
SCAN_SECONDS: Final = 1.0
MAX_SCAN_SECONDS: Final = 0.15
"""What a scan is taken to cost at most."""

CURSOR: Final = CLAIM_SECONDS.labels("cursor")
SWEEP: Final = CLAIM_SECONDS.labels("sweep")


class Source(Protocol):
    """Gives attempts to a consumer."""

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        """Up to `limit` attempts leased to the worker; empty when nothing is due. Raises DatabaseUnavailable."""

    async def run(self, wake: Callable[[], None]) -> None:
        """What it does beside that, until drained; `wake` says that a claim may find something."""

    async def ready(self) -> None:
        """A readiness check: raises while nothing can come from it."""

    async def drain(self) -> None:
        """Nothing more will be claimed."""

    async def aclose(self) -> None:
        """Give the connections back."""


class PostgresSource:
    """Claims from the outbox on a connection of its own: ready jobs, and those that were published in the other mode.

    The latter are looked for at each sweep of the cursor.
    """

    def __init__(self, url: str, presets: Sequence[str]) -> None:
        self._conn = PinnedConnection(url, name="claim")
        self._presets = list(presets)
        self._cursor: ScanCursor[Attempt] = ScanCursor()

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        # In turn, so that no preset starves one of its own priority.
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

    async def drain(self) -> None: ...

    async def aclose(self) -> None:
        await self._conn.aclose()


class FallbackScan:
    """Jobs that ought to have come by a message and have not: the fallback, and what a change of mode leaves.

    The scan runs again at once after one that came back full, for then it has to keep up; else once a second, and
    never for more than 1/20 of the time.
    """

    def __init__(self, conn: PinnedConnection, presets: Sequence[str]) -> None:
        self._conn = conn
        self._presets = list(presets)
        self._cursor: ScanCursor[Attempt] = ScanCursor()
        self._throttle = Throttle(SCAN_SECONDS, most=MAX_SCAN_SECONDS)
        self._found_ready, self._found_published = (
            FALLBACK_CLAIMS.labels(status).inc for status in ("ready", "published")
        )
        self.undelivered = False
        """Whether the last scan found jobs that were published, and that no message has brought to a worker."""

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        """As Source.claim; `undelivered` is of this call."""
        self.undelivered = False
        began = time.monotonic()
        if not self._throttle.due:
            return []
        self._presets.append(self._presets.pop(0))
        ready = await self._cursor.next(lambda marks: self._ready(worker_id, limit, marks))
        room = limit - len(ready)
        published = await self._published(worker_id, room) if room else []
        if len(published) < room:
            self._throttle.ended(began)
        self._found_ready(len(ready))
        self._found_published(len(published))
        self.undelivered = bool(published)
        return ready + published

    async def _ready(self, worker_id: int, limit: int, marks: Marks | None) -> list[Attempt]:
        async with self._conn.use() as conn:
            return await claim(
                conn, worker_id, lanes_of(self._presets, marks or {}), limit, age=READY_SECONDS
            )

    async def _published(self, worker_id: int, limit: int) -> list[Attempt]:
        async with self._conn.use() as conn:
            return await claim_published(conn, worker_id, self._presets, limit, age=PUBLISHED_SECONDS)
