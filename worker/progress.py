"""Shows what running attempts say of their progress: at most once a second, all of a worker's in one statement."""

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
    """Each second, show what is new of the attempts in `held`."""
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
            continue  # shown again within a second, or never: progress is a courtesy
        for execution, progress in news:
            execution.reported_n = progress.n
