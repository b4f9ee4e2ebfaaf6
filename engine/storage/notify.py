"""Wake-ups between processes: a hint that rows became ready. Polling is the truth; a lost hint costs a poll.

NOTIFY inside a submitting transaction takes a lock of the whole cluster until it commits (32 clients: 4930 → 1484
transactions/s). So it is sent afterwards, debounced, on a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final, LiteralString, Protocol

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.storage.connections import PinnedConnection, connect

DEBOUNCE_SECONDS: Final = 0.002
RECONNECT_SECONDS: Final = 1.0

MAX_PAYLOAD: Final = 7000
"""Characters; PostgreSQL's own limit is 8000 bytes, and presets are ASCII."""

NOTIFY: LiteralString = "SELECT pg_notify('outrider_ready', %s)"

READY: Final = "outrider_ready"
CANCEL: Final = "outrider_cancel"

log = structlog.get_logger()


class WakeHint(Protocol):
    """Says that rows of these presets became ready; without any, that rows of any preset may have."""

    def __call__(self, presets: Collection[str] = (), /) -> None: ...


class Notifier:
    """Sends a NOTIFY for a poke at once, and one more for all pokes of the next 2 ms.

    It names the presets, so that nobody wakes for work that others do.
    """

    def __init__(self, url: str) -> None:
        self._conn = PinnedConnection(url, name="notifier")
        self._poked = asyncio.Event()
        self._presets: set[str] = set()
        self._any = False

    def notify(self, presets: Collection[str] = ()) -> None:
        """See Poke. Never blocks and never fails."""
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
        try:
            while True:
                await self._poked.wait()
                self._poked.clear()
                try:
                    async with self._conn.use() as conn:
                        await conn.execute(NOTIFY, [self._payload()])
                except (DatabaseUnavailable, Error):
                    await asyncio.sleep(RECONNECT_SECONDS)  # the hint is lost: the workers poll
                await asyncio.sleep(DEBOUNCE_SECONDS)
        finally:
            await self._conn.aclose()


async def listen(url: str, heard: Callable[[str, str], None]) -> None:
    """Call `heard(channel, payload)` at each hint until cancelled. A READY's payload names presets; empty, any.

    After every connect it is called with READY, for hints may have been missed.
    """
    while True:
        try:
            async with await connect(url, name="listener") as conn:
                await conn.execute("LISTEN outrider_ready; LISTEN outrider_cancel")
                heard(READY, "")
                async for hint in conn.notifies():
                    heard(hint.channel, hint.payload)
        except (DatabaseUnavailable, Error) as error:
            log.debug("listener.lost", error=str(error))
        await asyncio.sleep(RECONNECT_SECONDS)
