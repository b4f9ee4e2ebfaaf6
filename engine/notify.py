"""Wake-ups between processes: a hint that rows became ready. Polling is the truth; a lost hint costs a poll.

NOTIFY inside a submitting transaction takes a lock of the whole cluster until it commits (32 clients: 4930 → 1484
transactions/s). So it is sent afterwards, debounced, on a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, LiteralString

import structlog
from psycopg import Error

from engine.db import HotConnection, connect
from engine.errors import DatabaseUnavailable

DEBOUNCE_SECONDS: Final = 0.002
RECONNECT_SECONDS: Final = 1.0

# A NOTIFY commits like a write. Nobody has to wait for the disk here: a hint does not outlive a crash anyway.
NOTIFY: LiteralString = (
    "SELECT set_config('synchronous_commit', 'off', true), pg_notify('outrider_ready', '')"
)

READY: Final = "outrider_ready"
CANCEL: Final = "outrider_cancel"

log = structlog.get_logger()


class Notifier:
    """Sends a NOTIFY for a poke at once, and one more for all pokes of the next 2 ms."""

    def __init__(self, url: str) -> None:
        self._conn = HotConnection(url, name="notifier")
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Say that rows became ready. Never blocks and never fails."""
        self._poked.set()

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                await self._poked.wait()
                self._poked.clear()
                try:
                    async with self._conn.use() as conn:
                        await conn.execute(NOTIFY)
                except (DatabaseUnavailable, Error):
                    await asyncio.sleep(RECONNECT_SECONDS)  # the hint is lost: the workers poll
                await asyncio.sleep(DEBOUNCE_SECONDS)
        finally:
            await self._conn.aclose()


async def listen(url: str, heard: Callable[[str], None]) -> None:
    """Call `heard(channel)` at each hint until cancelled.

    After every connect it is called with READY, for hints may have been missed.
    """
    while True:
        try:
            async with await connect(url, name="listener") as conn:
                await conn.execute("LISTEN outrider_ready; LISTEN outrider_cancel")
                heard(READY)
                async for hint in conn.notifies():
                    heard(hint.channel)
        except (DatabaseUnavailable, Error) as error:
            log.debug("listener.lost", error=str(error))
        await asyncio.sleep(RECONNECT_SECONDS)
