"""The current state of a job, for a move that found nothing to do."""

from __future__ import annotations

from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from engine.errors import JobNotFound
from engine.model import JobState
from engine.storage.statements import fetchone
from engine.tables.outbox import STATE_OF

STATE: LiteralString = (
    "SELECT coalesce(r.state, "
    + STATE_OF
    + """)
FROM jobs j
LEFT JOIN job_results r ON r.job_id = j.id
LEFT JOIN outbox o ON o.job_id = j.id
WHERE j.id = %(id)s AND (%(owner)s::text IS NULL OR j.user_id = %(owner)s)
"""
)


async def state_of(conn: AsyncConnection[Any], job_id: UUID, owner: str | None) -> JobState:
    """The job's state. `owner` None stands for an operator. Raises JobNotFound."""
    row = await fetchone(conn, STATE, {"id": job_id, "owner": owner})
    if row is None:
        raise JobNotFound(job_id)
    return JobState(row[0])
