"""The audit trail: every transition of a job. The moves write the rows; this module reads them, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.model import JobState, Reason
from engine.storage.literals import bare_array
from engine.storage.statements import fetchall, timed

PAGE: Final = 1000
"""The most transitions of an ordinary page. A job that snoozes each second for a day has 170,000 of them."""


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


class UnreadableRun(NamedTuple):
    """The unreadable attempts of a job since anything else happened to it, and the seconds since the first of them."""

    attempts: int
    seconds: float


# A job without further transitions is one row without a `seq`; a job that `owner` does not have is no row.
HISTORY: LiteralString = """
SELECT a.seq, a.from_state, a.to_state, a.timestamp, a.attempt, a.reason, a.metadata
FROM jobs j
LEFT JOIN LATERAL (
    SELECT r.seq, r.from_state, r.to_state, r.timestamp, r.attempt, r.reason, r.metadata
    FROM job_state_records r
    WHERE r.job_id = j.id AND r.seq > %(after)s
    ORDER BY r.seq
    LIMIT %(limit)s) a ON true
WHERE j.id = %(id)s AND (%(owner)s::text IS NULL OR j.user_id = %(owner)s)
ORDER BY a.seq
"""

LATEST: LiteralString = """
SELECT r.seq, r.from_state, r.to_state, r.timestamp, r.attempt, r.reason, r.metadata
FROM job_state_records r
WHERE r.job_id = %(id)s
ORDER BY r.seq DESC
LIMIT %(limit)s
"""

UNREADABLE_RUNS: LiteralString = """
SELECT asked.id, count(a.seq), coalesce(extract(epoch FROM clock_timestamp() - min(a.timestamp)), 0)::float8
FROM unnest(%(ids)s::uuid[]) AS asked(id)
LEFT JOIN LATERAL (
    SELECT other.seq FROM job_state_records other
    WHERE other.job_id = asked.id AND other.reason <> ALL (%(between)s::text[])
    ORDER BY other.seq DESC
    LIMIT 1
) before ON true
LEFT JOIN job_state_records a ON a.job_id = asked.id AND a.seq > before.seq AND a.reason = %(unreadable)s
GROUP BY asked.id
"""


@timed("history")
async def history(
    conn: AsyncConnection[Any], job_id: UUID, owner: str | None, *, after: int = -1, limit: int = PAGE
) -> list[AuditRow] | None:
    """The first `limit` transitions with a `seq` above `after`, oldest first. None if `owner` has no such job."""
    asked = {"id": job_id, "owner": owner, "after": after, "limit": limit}
    rows = await fetchall(conn, HISTORY, asked)
    return _transitions(row for row in rows if row[0] is not None) if rows else None


async def latest(conn: AsyncConnection[Any], job_id: UUID, limit: int) -> list[AuditRow]:
    """The last `limit` transitions of a job of any owner, oldest first. `seq` counts those that are left out."""
    return _transitions(reversed(await fetchall(conn, LATEST, {"id": job_id, "limit": limit})))


def _transitions(rows: Iterable[TupleRow]) -> list[AuditRow]:
    return [
        AuditRow(
            seq, from_state and JobState(from_state), JobState(to_state), timestamp, attempt, reason, metadata
        )
        for seq, from_state, to_state, timestamp, attempt, reason, metadata in rows
    ]


@timed("find unreadable")
async def unreadable_runs(conn: AsyncConnection[Any], ids: Sequence[UUID]) -> Mapping[UUID, UnreadableRun]:
    """The present run of unreadable attempts of each of the jobs `ids`, by the database's clock."""
    asked = {
        "ids": bare_array(ids),
        "between": [Reason.CLAIMED, Reason.UNREADABLE],
        "unreadable": Reason.UNREADABLE,
    }
    rows = await fetchall(conn, UNREADABLE_RUNS, asked)
    return {job_id: UnreadableRun(attempts, seconds) for job_id, attempts, seconds in rows}
