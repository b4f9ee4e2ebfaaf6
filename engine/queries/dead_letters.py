"""Dead letters: the jobs that failed for good, as an operator sees them before a redrive."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A FAILED job. Failures that look alike have the same `fingerprint`."""

    job_id: UUID
    user_id: str
    preset: str
    fingerprint: str | None
    error: dict[str, Any] | None
    attempt: int
    failed_at: datetime


PAGE: LiteralString = """
SELECT r.job_id, r.user_id, j.preset, r.error_fingerprint AS fingerprint, r.error, r.attempt,
       r.finished_at AS failed_at
FROM job_results r JOIN jobs j ON j.id = r.job_id
WHERE r.state = 'FAILED' AND r.job_id > %(after)s
  AND (%(preset)s::text IS NULL OR j.preset = %(preset)s)
  AND (%(fingerprint)s::text IS NULL OR r.error_fingerprint = %(fingerprint)s)
ORDER BY r.job_id
LIMIT %(limit)s
"""


async def page(
    conn: AsyncConnection[Any],
    *,
    preset: str | None = None,
    fingerprint: str | None = None,
    after: UUID = FIRST,
    limit: int = 100,
) -> list[DeadLetter]:
    """Up to `limit` dead letters with ids above `after`, the oldest job first."""
    parameters = {"preset": preset, "fingerprint": fingerprint, "after": after, "limit": limit}
    async with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        await cursor.execute(PAGE, parameters)
        return await cursor.fetchall()
