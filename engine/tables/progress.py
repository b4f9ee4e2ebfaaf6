"""The job_progress table: the latest progress report of each running attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.storage.literals import array
from engine.storage.statements import timed

REPORT: LiteralString = """
INSERT INTO job_progress AS known (job_id, attempt, n, fraction, message, step)
SELECT id, attempt, n, fraction, message, step
FROM unnest(%s::uuid[], %s::integer[], %s::integer[], %s::double precision[], %s::text[], %s::text[])
     AS x(id, attempt, n, fraction, message, step)
ORDER BY id
ON CONFLICT (job_id) DO UPDATE
SET attempt = excluded.attempt, n = excluded.n, fraction = excluded.fraction, message = excluded.message,
    step = excluded.step,
    updated_at = clock_timestamp()
WHERE (known.attempt, known.n) < (excluded.attempt, excluded.n)
"""


class Progress(NamedTuple):
    """One progress report. `n` counts the reports of an attempt; `fraction` is 0..1, or None if only steps began.

    `step` is the step that began last.
    """

    job_id: UUID
    attempt: int
    n: int
    fraction: float | None
    message: str
    step: str | None = None


@timed("write progress")
async def report(conn: AsyncConnection[Any], latest: Sequence[Progress]) -> None:
    """Write the latest reports of several attempts in one statement. Older reports never replace newer ones."""
    await conn.execute(REPORT, [array(column) for column in zip(*latest, strict=True)])
