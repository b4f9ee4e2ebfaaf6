"""Writes the progress that running attempts report: at most once a second, one statement per worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.storage.connections import Pool, borrow
from engine.tables.progress import Progress, report
from worker.execution import Execution

REPORT_SECONDS: Final = 1.0


async def report_forever(pool: Pool, held: Mapping[tuple[UUID, int], Execution]) -> None:
    """Once a second, write the new progress of the attempts in `held`."""
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        news = [
            (execution, Progress(*key, execution.progress_n, *execution.latest))
            for key, execution in held.items()
            if execution.progress_n > execution.reported_n
        ]
        if not news:
            continue
        try:
            async with borrow(pool) as conn:
                await report(conn, [progress for _, progress in news])
        except (DatabaseUnavailable, Error):
            # The next round tries again. Progress may get lost: it is a courtesy.
            continue
        for execution, progress in news:
            execution.reported_n = progress.n
