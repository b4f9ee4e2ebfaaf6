"""Reports the state of this relay every few seconds, to explain why a job has not started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.process.run import process_name
from engine.storage.connections import PinnedConnection
from engine.storage.faults import by_blame, told
from engine.tables.relay_status import RelayStatus, report

REPORT_SECONDS: Final = 5.0

log = structlog.get_logger()


async def report_forever(url: str, statuses: Callable[[], Sequence[RelayStatus]]) -> None:
    """Report every REPORT_SECONDS, over a connection of its own, until cancelled."""
    reporting = PinnedConnection(url, name="status")
    failing: Exception | None = None
    try:
        while True:
            try:
                async with reporting.use() as conn:
                    await report(conn, process_name(), statuses())
                failing = None
            except (DatabaseUnavailable, Error) as error:
                # The next round tries again.
                if not told(failing, error):
                    log_at = by_blame(log, error)
                    log_at("status.not_reported")
                failing = error
            await asyncio.sleep(REPORT_SECONDS)
    finally:
        await reporting.aclose()
