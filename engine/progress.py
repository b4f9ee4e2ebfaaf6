"""The job_progress table: what running attempts last said of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Error

from engine.db import Pool, array, lent, timed
from engine.errors import DatabaseUnavailable
from engine.executor import Execution

REPORT_SECONDS: Final = 1.0

REPORT: LiteralString = """
INSERT INTO job_progress AS known (job_id, attempt, n, fraction, message)
SELECT id, attempt, n, fraction, message
FROM unnest(%s::uuid[], %s::integer[], %s::integer[], %s::double precision[], %s::text[])
     AS x(id, attempt, n, fraction, message)
ORDER BY id
ON CONFLICT (job_id) DO UPDATE
SET attempt = excluded.attempt, n = excluded.n, fraction = excluded.fraction, message = excluded.message,
    updated_at = clock_timestamp()
WHERE (known.attempt, known.n) < (excluded.attempt, excluded.n)
"""


class Progress(NamedTuple):
    """`n` counts the reports of one attempt; `fraction` is 0..1."""

    job_id: UUID
    attempt: int
    n: int
    fraction: float
    message: str


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
            async with lent(pool) as conn:
                await report(conn, [progress for _, progress in news])
        except (DatabaseUnavailable, Error):
            continue  # shown again within a second, or never: progress is a courtesy
        for execution, progress in news:
            execution.reported_n = progress.n


@timed("write progress")
async def report(conn: AsyncConnection[Any], latest: Sequence[Progress]) -> None:
    """Show `latest` to the jobs' owners, in one statement."""
    await conn.execute(REPORT, [array(column) for column in zip(*latest, strict=True)])
