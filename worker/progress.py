"""Writes the progress that running attempts report: at most once a second, one statement per worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.storage.connections import Pool, borrow
from engine.storage.faults import by_blame, told
from engine.tables.progress import Progress, report
from worker.execution import Execution

REPORT_SECONDS: Final = 1.0

log = structlog.get_logger()


async def report_forever(pool: Pool, held: Mapping[tuple[UUID, int], Execution]) -> None:
    """Once a second, write the new progress of the attempts in `held`."""
    failing: Exception | None = None
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        news = [
            (execution, Progress(*key, execution.progress_n, *execution.latest, execution.latest_step))
            for key, execution in held.items()
            if execution.progress_n > execution.reported_n
        ]
        if not news:
            continue
        try:
            async with borrow(pool) as conn:
                await report(conn, [progress for _, progress in news])
        except (DatabaseUnavailable, Error) as error:
            # The next round tries again. Progress may get lost: it is a courtesy.
            if not told(failing, error):
                log_at = by_blame(log, error)
                log_at("progress.not_written", rows=len(news))
            failing = error
            continue
        failing = None
        for execution, progress in news:
            execution.reported_n = progress.n
