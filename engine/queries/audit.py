"""The audit trail: every transition of a job. The moves write the rows; this module reads them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import JobState
from engine.storage.statements import fetchall, timed


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One transition. `seq` counts from 0 without gaps. The first row has no `from_state`."""

    seq: int
    from_state: JobState | None
    to_state: JobState
    timestamp: datetime
    attempt: int
    reason: str | None
    metadata: dict[str, Any] | None


HISTORY: LiteralString = """
SELECT a.seq, a.from_state, a.to_state, a.timestamp, a.attempt, a.reason, a.metadata
FROM jobs j
LEFT JOIN job_state_records a ON a.job_id = j.id AND a.seq > %(after)s
WHERE j.id = %(id)s AND (%(owner)s::text IS NULL OR j.user_id = %(owner)s)
ORDER BY a.seq
"""


@timed("history")
async def history(
    conn: AsyncConnection[Any], job_id: UUID, owner: str | None, after: int = -1
) -> list[AuditRow] | None:
    """The job's transitions with a `seq` above `after`, oldest first. None if `owner` has no such job."""
    rows = await fetchall(conn, HISTORY, {"id": job_id, "owner": owner, "after": after})
    if not rows:
        return None
    return [
        AuditRow(
            seq, from_state and JobState(from_state), JobState(to_state), timestamp, attempt, reason, metadata
        )
        for seq, from_state, to_state, timestamp, attempt, reason, metadata in rows
        if seq is not None
    ]
