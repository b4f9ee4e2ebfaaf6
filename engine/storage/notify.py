"""Hints between processes that rows became ready. Workers poll as well, so a lost hint only costs the time of a poll.

What enqueues sends them with its commit, see engine/storage/listener.py. A Notifier sends them after the commit,
debounced, on a connection of its own, for what makes known jobs ready again: redrives and maintenance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, LiteralString, Protocol

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.storage.connections import PinnedConnection
from engine.storage.faults import by_blame, told

DEBOUNCE_SECONDS: Final = 0.002
RECONNECT_SECONDS: Final = 1.0

MAX_PAYLOAD: Final = 7000
"""In characters. PostgreSQL's limit is 8000 bytes, and presets are ASCII."""

NOTIFY: LiteralString = "SELECT pg_notify('outrider_ready', %s)"

READY: Final = "outrider_ready"
CANCEL: Final = "outrider_cancel"

log = structlog.get_logger()


class WakeHint(Protocol):
    """Hints that rows of `presets` became ready, or, without presets, that rows of any preset may have."""

    def __call__(self, presets: Collection[str] = (), /) -> None: ...


class Notifier:
    """Sends a NOTIFY for the first hint at once, and one more for all hints of the next 2 ms.

    The payload names the presets, so that no worker wakes for presets that it does not run.
    """

    def __init__(self, url: str) -> None:
        self._conn = PinnedConnection(url, name="notifier")
        self._poked = asyncio.Event()
        self._presets: set[str] = set()
        self._any = False

    def notify(self, presets: Collection[str] = ()) -> None:
        """See WakeHint. Never blocks and never fails."""
        self._any = self._any or not presets
        self._presets.update(presets)
        self._poked.set()

    def _payload(self) -> str:
        named = " ".join(sorted(self._presets))
        payload = "" if self._any or len(named) > MAX_PAYLOAD else named
        self._presets.clear()
        self._any = False
        return payload

    async def run(self) -> None:
        """Send until cancelled."""
        failed: Exception | None = None
        try:
            while True:
                await self._poked.wait()
                self._poked.clear()
                try:
                    async with self._conn.use() as conn:
                        await conn.execute(NOTIFY, [self._payload()])
                    failed = None
                except (DatabaseUnavailable, Error) as error:
                    # The hint is lost. The workers find the rows by polling.
                    if not told(failed, error):
                        log_at = by_blame(log, error)
                        log_at("hint.lost")
                    failed = error
                    await asyncio.sleep(RECONNECT_SECONDS)
                await asyncio.sleep(DEBOUNCE_SECONDS)
        finally:
            await self._conn.aclose()
