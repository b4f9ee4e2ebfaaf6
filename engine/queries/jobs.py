"""Reads jobs: single ones, pages, or only their versions. `owner` None stands for an operator: any owner's jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.model import JobState
from engine.storage.literals import array
from engine.storage.statements import fetchall, timed
from engine.tables.outbox import STATE_OF


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it stands now. `metadata` and `output` are JSON text, unparsed.

    `max_attempts` and `timeout_seconds` of None mean the preset's own. `error` is {"type", "message", "attempt"}.
    """

    job_id: UUID
    user_id: str
    preset: str
    content: str | None
    metadata: str
    priority: int
    attempt: int
    max_attempts: int | None
    timeout_seconds: int | None
    created_at: datetime
    updated_at: datetime
    run_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    state: JobState
    version: int
    progress_n: int
    fraction: float | None
    message: str | None
    output: str | None
    error: dict[str, Any] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))


class JobVersion(NamedTuple):
    """The values that change whenever the job changes."""

    version: int
    progress_n: int
    state: JobState


class Holder(NamedTuple):
    """The worker that has leased a job. Once the worker's row is gone, `name` is None and `live` is False."""

    id: int
    name: str | None
    live: bool


READ: LiteralString = """
SELECT s.job_id, s.user_id, s.preset, s.content, s.metadata::text AS metadata, s.priority, s.attempt, s.max_attempts,
       s.timeout_seconds, s.created_at, s.updated_at, s.run_at, s.started_at, s.completed_at, s.state, s.version,
       s.progress_n, s.fraction, s.message, s.output::text AS output, s.error
FROM unnest(%s::uuid[], %s::text[]) AS ask(id, owner)
JOIN job_status s ON s.job_id = ask.id AND (ask.owner IS NULL OR s.user_id = ask.owner)
"""

VERSIONS: LiteralString = (
    """
SELECT ask.id, coalesce(r.version, o.version), coalesce(p.n, 0), coalesce(r.state, """
    + STATE_OF
    + """)
FROM unnest(%s::uuid[]) AS ask(id)
LEFT JOIN outbox o ON o.job_id = ask.id
LEFT JOIN job_results r ON r.job_id = ask.id
LEFT JOIN job_progress p ON p.job_id = ask.id AND p.attempt = o.attempt AND o.status = 'leased'
WHERE o.job_id IS NOT NULL OR r.job_id IS NOT NULL
"""
)

HOLDER: LiteralString = """
SELECT o.worker_id, w.name, coalesce(w.expires_at > clock_timestamp(), false)
FROM outbox o LEFT JOIN workers w ON w.id = o.worker_id
WHERE o.job_id = %s AND o.worker_id IS NOT NULL
"""

FEW: Final = 1000
"""No more of an owner's jobs than this are few: the jobs of a state or of a preset that can all be looked at."""

PRESETS: LiteralString = "SELECT id, preset FROM jobs WHERE id = ANY (%s::uuid[])"

_PAGE_HEAD: LiteralString = """
SELECT s.job_id, s.user_id, s.preset, NULL AS content, s.metadata::text AS metadata, s.priority, s.attempt,
       s.max_attempts, s.timeout_seconds, s.created_at, s.updated_at, s.run_at, s.started_at, s.completed_at,
       s.state, s.version, s.progress_n, s.fraction, s.message, NULL AS output, s.error
FROM (
"""

_PAGE_TAIL: LiteralString = """
    LIMIT %(limit)s OFFSET %(offset)s
) AS found(id)
JOIN job_status s ON s.job_id = found.id
ORDER BY s.job_id DESC
"""

# Row comparisons pin each owner's page to its index: with `user_id = …` the planner once walked the primary key.
# Each comparison has both bounds, so that a page never reads past its owner or its state.
_ZERO: Final = UUID(int=0)
_LAST: Final = UUID(int=2**128 - 1)

_OWNED: LiteralString = """
    SELECT id FROM jobs
    WHERE (user_id, id) < (%(owner)s, %(before)s) AND (user_id, id) >= (%(owner)s, %(zero)s)
      AND (%(preset)s::text IS NULL OR preset = %(preset)s)
    ORDER BY user_id DESC, id DESC"""
_OWNED_RESULT: LiteralString = """
    SELECT r.job_id FROM job_results r
    WHERE (r.user_id, r.state, r.job_id) < (%(owner)s, %(state)s::job_state, %(before)s)
      AND (r.user_id, r.state, r.job_id) >= (%(owner)s, %(state)s::job_state, %(zero)s)
      AND (%(preset)s::text IS NULL OR EXISTS (
          SELECT FROM jobs j WHERE j.user_id = r.user_id AND j.id = r.job_id AND j.preset = %(preset)s))
    ORDER BY r.user_id DESC, r.state DESC, r.job_id DESC"""
_OWNED_LEASED: LiteralString = """
    SELECT job_id FROM outbox
    WHERE status = 'leased'
      AND (user_id, job_id) < (%(owner)s, %(before)s) AND (user_id, job_id) >= (%(owner)s, %(zero)s)
      AND (%(preset)s::text IS NULL OR preset = %(preset)s)
    ORDER BY user_id DESC, job_id DESC"""
_OWNED_PENDING: LiteralString = """
    SELECT job_id FROM outbox
    WHERE status <> 'leased'
      AND (user_id, job_id) < (%(owner)s, %(before)s) AND (user_id, job_id) >= (%(owner)s, %(zero)s)
      AND (%(preset)s::text IS NULL OR preset = %(preset)s)
    ORDER BY user_id DESC, job_id DESC"""
# An owner's few jobs of a preset, known by their ids, in one state.
_OWNED_FEW: LiteralString = (
    """
    SELECT few.id FROM unnest(%(ids)s::uuid[]) AS few(id)
    LEFT JOIN outbox o ON o.job_id = few.id
    LEFT JOIN job_results r ON r.job_id = few.id
    WHERE coalesce(r.state, """  # noqa: S608 - constants alone
    + STATE_OF
    + """) = %(state)s::job_state
    ORDER BY few.id DESC"""
)
_ANY: LiteralString = """
    SELECT id FROM jobs
    WHERE id < %(before)s AND (%(preset)s::text IS NULL OR preset = %(preset)s)
    ORDER BY id DESC"""
_ANY_RESULT: LiteralString = """
    SELECT r.job_id FROM job_results r
    WHERE r.job_id < %(before)s AND r.state = %(state)s::job_state
      AND (%(preset)s::text IS NULL OR EXISTS (
          SELECT FROM jobs j WHERE j.id = r.job_id AND j.preset = %(preset)s))
    ORDER BY r.job_id DESC"""
_ANY_FAILED: LiteralString = """
    SELECT r.job_id FROM job_results r
    WHERE r.job_id < %(before)s AND r.state = 'FAILED'
      AND (%(preset)s::text IS NULL OR EXISTS (
          SELECT FROM jobs j WHERE j.id = r.job_id AND j.preset = %(preset)s))
    ORDER BY r.job_id DESC"""
_ANY_LEASED: LiteralString = """
    SELECT job_id FROM outbox
    WHERE status = 'leased' AND job_id < %(before)s AND (%(preset)s::text IS NULL OR preset = %(preset)s)
    ORDER BY job_id DESC"""
_ANY_PENDING: LiteralString = """
    SELECT job_id FROM outbox
    WHERE status <> 'leased' AND job_id < %(before)s AND (%(preset)s::text IS NULL OR preset = %(preset)s)
    ORDER BY job_id DESC"""

_FOUND_BY_OWNER: Final[Mapping[JobState | None, LiteralString]] = {
    None: _OWNED,
    JobState.PENDING: _OWNED_PENDING,
    JobState.PROCESSING: _OWNED_LEASED,
    JobState.COMPLETED: _OWNED_RESULT,
    JobState.FAILED: _OWNED_RESULT,
    JobState.CANCELLED: _OWNED_RESULT,
}
_FOUND: Final[Mapping[JobState | None, LiteralString]] = {
    None: _ANY,
    JobState.PENDING: _ANY_PENDING,
    JobState.PROCESSING: _ANY_LEASED,
    JobState.COMPLETED: _ANY_RESULT,
    JobState.FAILED: _ANY_FAILED,
    JobState.CANCELLED: _ANY_RESULT,
}


@timed("read jobs")
async def read(conn: AsyncConnection[Any], asks: Sequence[tuple[UUID, str | None]]) -> list[JobView | None]:
    """The job of each (id, owner), in order. None if there is no such job, or if it belongs to another owner."""
    async with conn.cursor(row_factory=class_row(JobView)) as cursor:
        await cursor.execute(READ, [array(job_id for job_id, _ in asks), array(owner for _, owner in asks)])
        found = {view.job_id: view for view in await cursor.fetchall()}
    views = [(found.get(job_id), owner) for job_id, owner in asks]
    return [view if view and owner in (None, view.user_id) else None for view, owner in views]


async def holder(conn: AsyncConnection[Any], job_id: UUID) -> Holder | None:
    """The worker that has leased the job, or None."""
    rows = await fetchall(conn, HOLDER, [job_id])
    return Holder(*rows[0]) if rows else None


async def presets_of(conn: AsyncConnection[Any], ids: Iterable[UUID]) -> dict[UUID, str]:
    """The preset of each of the jobs `ids` that exists."""
    return dict(await fetchall(conn, PRESETS, [array(ids)]))


@timed("list jobs")
async def page(
    conn: AsyncConnection[Any],
    *,
    owner: str | None,
    state: JobState | None = None,
    preset: str | None = None,
    before: UUID | None = None,
    offset: int = 0,
    limit: int = 20,
) -> list[JobView]:
    """Up to `limit` jobs with ids below `before`, newest first, without content and output."""
    found = _FOUND[state] if owner is None else _FOUND_BY_OWNER[state]
    parameters: dict[str, object] = {
        "owner": owner,
        "state": state,
        "preset": preset,
        "before": before or _LAST,
        "zero": _ZERO,
        "offset": offset,
        "limit": limit,
    }
    if owner is not None and state is not None and preset is not None:
        few = await _few_of_many(conn, found, parameters)
        if few is not None:
            found, parameters["ids"] = _OWNED_FEW, array(few)
    async with conn.cursor(row_factory=class_row(JobView)) as cursor:
        await cursor.execute(_PAGE_HEAD + found + _PAGE_TAIL, parameters)
        return await cursor.fetchall()


async def _few_of_many(
    conn: AsyncConnection[Any], found: LiteralString, parameters: Mapping[str, object]
) -> Sequence[UUID] | None:
    """The owner's jobs of the preset, if those are few and those that `found` finds whatever their preset are not.

    Otherwise the preset would be looked for in each of the many.
    """
    if len(await _first(conn, found, {**parameters, "preset": None})) <= FEW:
        return None
    of_preset = await _first(conn, _OWNED, parameters)
    return of_preset if len(of_preset) <= FEW else None


async def _first(
    conn: AsyncConnection[Any], found: LiteralString, parameters: Mapping[str, object]
) -> list[UUID]:
    """The first ids that `found` finds: at most FEW, and one more if there are more."""
    rows = await fetchall(conn, found + " LIMIT %(few)s", {**parameters, "few": FEW + 1})
    return [job_id for (job_id,) in rows]


@timed("watch jobs")
async def versions(conn: AsyncConnection[Any], ids: Sequence[UUID]) -> dict[UUID, JobVersion]:
    """The version, progress and state of each of the jobs `ids` that exists."""
    rows = await fetchall(conn, VERSIONS, [array(ids)])
    return {job_id: JobVersion(version, n, JobState(state)) for job_id, version, n, state in rows}
