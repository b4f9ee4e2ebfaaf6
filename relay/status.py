"""Reports the state of this relay every few seconds, to explain why a job has not started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.process.run import process_name
from engine.storage.connections import PinnedConnection
from engine.tables.relay_status import RelayStatus, report

REPORT_SECONDS: Final = 5.0


async def report_forever(url: str, statuses: Callable[[], Sequence[RelayStatus]]) -> None:
    """Report every REPORT_SECONDS, over a connection of its own, until cancelled."""
    reporting = PinnedConnection(url, name="status")
    try:
        while True:
            with suppress(DatabaseUnavailable, Error):  # the next round tries again
                async with reporting.use() as conn:
                    await report(conn, process_name(), statuses())
            await asyncio.sleep(REPORT_SECONDS)
    finally:
        await reporting.aclose()
