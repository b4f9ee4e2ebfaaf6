"""Listens for hints, and asks for them as long as they are few.

A NOTIFY in the transaction that enqueues is the quickest hint, and the dearest: it takes a lock of the whole cluster
until that transaction has ended (32 clients: 4930 → 1484 transactions/s). So transactions send it only while a process
that has nothing to do asks for it, and where hints are many they are better replaced by looking often: each look then
finds several jobs. What asks is one number in the database, `hints_wanted_until`. It expires by itself, because the one
who asked may be dead. While it has just expired nobody asks anew, so that one process gives up for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, LiteralString

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.storage.connections import Connection, connect
from engine.storage.deadline import STATEMENT_SECONDS, deadline
from engine.storage.faults import by_blame, told
from engine.storage.notify import READY
from engine.storage.statements import fetchone

RECONNECT_SECONDS: Final = 1.0
ASK_SECONDS: Final = 1.0
"""How often a process sees to it that hints are asked for."""

MANY: Final = 75
"""As many hints in a second are too many. It must be less than what commits one after the other come to, or their rate
would never show: 200 a second where a commit takes 5 ms."""
WITHOUT_SECONDS: Final = 5.0
"""How long nobody asks then, to a second."""
OFTEN_SECONDS: Final = 0.005
"""The pause between two looks meanwhile."""
OFTEN: Final = (OFTEN_SECONDS,) * round(ASK_SECONDS / OFTEN_SECONDS)

# A transaction that enqueued before anybody asked tells nobody of its commit. It is found by looks whose pauses grow: a
# job waits for as long again as its transaction went on, at the most.
SOON: Final = tuple(0.002 * 2**n for n in range(9))

# Whether hints were asked for already, and whether nobody asks because they were too many. What is asked holds for 30
# seconds, and is said again after 15 by whoever is first.
ASK: LiteralString = """
SELECT asked.until > asked.now,
       asked.until BETWEEN asked.now - %(without)s AND asked.now,
       CASE WHEN asked.until < asked.now + 15 AND asked.until NOT BETWEEN asked.now - %(without)s AND asked.now
            THEN setval('hints_wanted_until', floor(asked.now)::bigint + 30) END
FROM (SELECT coalesce(pg_sequence_last_value('hints_wanted_until'), 0) AS until,
             extract(epoch FROM clock_timestamp()) AS now) AS asked
"""
UNASK: LiteralString = """
SELECT setval('hints_wanted_until', floor(extract(epoch FROM clock_timestamp()))::bigint)
"""

log = structlog.get_logger()


class Listener:
    """Calls `heard(channel, payload)` for each hint. READY's payload names presets; empty means any.

    With `asks` it asks for hints of enqueued jobs. `heard` is also called with READY wherever hints may be missing:
    after every connect, and again and again while nobody asks.
    """

    def __init__(self, url: str, heard: Callable[[str, str], None], *, asks: bool) -> None:
        self._url = url
        self._heard = heard
        self._asks = asks

    async def run(self) -> None:
        """Listen until cancelled."""
        lost: Exception | None = None
        while True:
            try:
                async with await connect(self._url, name="listener") as conn:
                    async with deadline(conn, STATEMENT_SECONDS):
                        await conn.execute("LISTEN outrider_ready; LISTEN outrider_cancel")
                    self._heard(READY, "")
                    lost = None
                    while True:
                        await self._turn(conn)
            except (DatabaseUnavailable, Error) as error:
                if not told(lost, error):
                    log_at = by_blame(log, error)
                    log_at("listener.lost")
                lost = error
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _turn(self, conn: Connection) -> None:
        """Listen for a second or less."""
        if not self._asks:
            await self._hear(conn, [ASK_SECONDS])
            return
        async with deadline(conn, STATEMENT_SECONDS):
            row = await fetchone(conn, ASK, {"without": WITHOUT_SECONDS})
        assert row is not None
        asked, given_up, _ = row
        if given_up:
            await self._hear(conn, OFTEN)
        elif await self._hear(conn, [ASK_SECONDS] if asked else SOON, most=MANY):
            async with deadline(conn, STATEMENT_SECONDS):
                await conn.execute(UNASK)

    async def _hear(self, conn: Connection, pauses: Iterable[float], *, most: int | None = None) -> bool:
        """Hear hints for the length of `pauses`, with a look between two; stop with true at more than `most` hints."""
        left = None if most is None else most + 1
        for no, pause in enumerate(pauses):
            if no:
                self._heard(READY, "")
            # It stops between two packets: of a packet that is left half read, psycopg forgets the rest.
            async for hint in conn.notifies(timeout=pause, stop_after=left):
                self._heard(hint.channel, hint.payload)
                left = None if left is None else left - 1
            if left is not None and left <= 0:
                return True
        return False
