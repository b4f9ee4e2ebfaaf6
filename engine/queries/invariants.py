"""The invariants that can be checked on stored rows, each a statement over the whole database.

A statement judges rows of `steps` (the audit trail, each row beside its predecessor) and `standing` (where each job
stands now). It returns `(job_id, detail)`: what is wrong, or NULL if the invariant holds. The invariants do not
overlap: a fault shows in the invariant that it breaks, not in all that build on that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from engine.limits import MAX_ATTEMPTS
from engine.model import MAX_CRASHES, TRANSITIONS, Reason
from engine.tables.outbox import STATE_OF

SHOWN: Final = 10
"""The most offenders that are named for an invariant."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """`states` is the invariant as a sentence, `sql` the query that judges it."""

    name: str
    states: str
    sql: LiteralString


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken invariant: the number of jobs that break it, and the first of them, each with what is wrong."""

    invariant: Invariant
    jobs: int
    offenders: tuple[tuple[UUID, str], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One look at the database: the number of jobs, and the broken invariants."""

    jobs: int
    findings: tuple[Finding, ...]


INVARIANTS: Final = (
    Invariant(
        "I1",
        "every job has either a result or exactly one outbox row",
        """
SELECT coalesce(j.id, o.job_id, r.job_id) AS job_id,
       CASE WHEN j.id IS NULL THEN 'an outbox row or a result without a job'
            WHEN o.job_id IS NULL AND r.job_id IS NULL THEN 'neither an outbox row nor a result'
            WHEN o.job_id IS NOT NULL AND r.job_id IS NOT NULL THEN 'an outbox row and a result' END AS detail
FROM jobs j
FULL JOIN outbox o ON o.job_id = j.id
FULL JOIN job_results r ON r.job_id = coalesce(j.id, o.job_id)
""",
    ),
    Invariant(
        "I2",
        "the history counts seq 0..n without gaps, takes legal transitions only, and ends in the job's state",
        """
SELECT coalesce(j.id, s.job_id) AS job_id,
       CASE WHEN s.job_id IS NULL THEN 'no history'
            WHEN j.id IS NULL THEN 'history without a job'
            WHEN s.seq <> s.due THEN concat('seq ', s.seq, ' stands where ', s.due, ' is due')
            WHEN s.from_state IS DISTINCT FROM s.previous
            THEN concat('seq ', s.seq, ' comes from ', s.from_state, ' after ', s.previous)
            WHEN concat(s.from_state, '>', s.to_state) <> ALL (%(edges)s)
            THEN concat('seq ', s.seq, ' goes from ', s.from_state, ' to ', s.to_state)
            WHEN s.seq <> now.version THEN concat('ends at seq ', s.seq, ', the version is ', now.version)
            WHEN s.terminal = now.ended AND s.to_state <> now.state
            THEN concat('ends ', s.to_state, ', the job is ', now.state) END AS detail
FROM jobs j
FULL JOIN steps s ON s.job_id = j.id
LEFT JOIN standing now ON now.job_id = s.job_id AND s.last
""",
    ),
    Invariant(
        "I3",
        "only the current attempt writes a result or a transition",
        """
SELECT s.job_id,
       CASE WHEN s.to_state <> 'PROCESSING' AND s.attempt <> s.current
            THEN concat('seq ', s.seq, ' is by attempt ', s.attempt, ', the current one is ', s.current)
            WHEN s.attempt <> now.attempt
            THEN concat('stands at attempt ', now.attempt, ', history at ', s.attempt) END AS detail
FROM steps s
LEFT JOIN standing now ON now.job_id = s.job_id AND s.last
""",
    ),
    Invariant(
        "I5",
        "a job has a result if and only if its history ends in a terminal state",
        """
SELECT s.job_id,
       CASE WHEN now.ended AND NOT s.terminal THEN concat('a result, and history ends ', s.to_state)
            WHEN s.terminal AND NOT now.ended THEN concat('no result, and history ends ', s.to_state)
       END AS detail
FROM steps s
JOIN standing now ON now.job_id = s.job_id AND s.last
""",
    ),
    Invariant(
        "I6",
        "no attempt number is used twice: each claim starts the next one",
        """
SELECT job_id,
       CASE WHEN attempt <> current + 1
            THEN concat('seq ', seq, ' starts attempt ', attempt, ' after attempt ', current) END AS detail
FROM steps
WHERE to_state = 'PROCESSING'
""",
    ),
    # A job at a limit may also be CANCELLED, if that was requested before the last attempt ended.
    Invariant(
        "I7",
        "errors and crashes since the last redrive stay within their limits; a job at a limit has failed",
        """
SELECT now.job_id,
       CASE WHEN now.errors > allowed.errors THEN concat(now.errors, ' errors of ', allowed.errors)
            WHEN now.crashes > %(max_crashes)s THEN concat(now.crashes, ' crashes of ', %(max_crashes)s)
            WHEN now.state NOT IN ('FAILED', 'CANCELLED') AND now.errors = own.errors
            THEN concat(now.state, ' after ', now.errors, ' errors of ', allowed.errors)
            WHEN now.state NOT IN ('FAILED', 'CANCELLED') AND now.crashes = %(max_crashes)s
            THEN concat(now.state, ' after ', now.crashes, ' crashes of ', %(max_crashes)s)
            WHEN now.crashes <> coalesce(history.lapses, 0)
            THEN concat(now.crashes, ' crashes counted, ', coalesce(history.lapses, 0), ' in the history')
       END AS detail
FROM standing now
JOIN jobs j ON j.id = now.job_id
LEFT JOIN unnest(%(presets)s::text[], %(limits)s::integer[]) AS preset(name, errors) ON preset.name = j.preset
CROSS JOIN LATERAL (SELECT coalesce(j.max_attempts, preset.errors)) AS own(errors)
CROSS JOIN LATERAL (SELECT coalesce(own.errors, %(max_attempts)s)) AS allowed(errors)
LEFT JOIN (
    SELECT marked.job_id, count(*) AS lapses
    FROM job_state_records marked
    WHERE marked.reason = %(lapsed)s AND NOT EXISTS (
        SELECT FROM job_state_records later
        WHERE later.job_id = marked.job_id AND later.seq > marked.seq AND later.reason = %(redriven)s)
    GROUP BY marked.job_id
) history ON history.job_id = now.job_id
""",
    ),
    Invariant(
        "I8",
        "CANCELLED becomes COMPLETED only after a redrive",
        """
SELECT job_id,
       CASE WHEN cancelled_seq > coalesce(redriven_seq, -1)
            THEN concat('COMPLETED at seq ', seq, ', CANCELLED at seq ', cancelled_seq) END AS detail
FROM steps
WHERE to_state = 'COMPLETED'
""",
    ),
    Invariant(
        "I13",
        "a job is suspected only after a lapse since its last redrive",
        """
SELECT o.job_id,
       CASE WHEN NOT EXISTS (
           SELECT FROM job_state_records marked
           WHERE marked.job_id = o.job_id AND marked.reason IN (%(lapsed)s, %(beside_others)s) AND NOT EXISTS (
               SELECT FROM job_state_records later
               WHERE later.job_id = marked.job_id AND later.seq > marked.seq AND later.reason = %(redriven)s))
       THEN concat('suspicion ', o.suspicion, ' without a lapse') END AS detail
FROM outbox o
WHERE o.suspicion > 0
""",
    ),
)

# A job with both an outbox row and a result, or with neither, is judged by I1 alone.
_SETTING: LiteralString = (
    """
WITH standing AS (
    SELECT o.job_id, o.version, o.attempt, o.errors, o.crashes, false AS ended,
           """  # noqa: S608 - constants alone
    + STATE_OF
    + """ AS state
    FROM outbox o
    WHERE NOT EXISTS (SELECT FROM job_results r WHERE r.job_id = o.job_id)
    UNION ALL
    SELECT r.job_id, r.version, r.attempt, r.errors, r.crashes, true, r.state
    FROM job_results r
    WHERE NOT EXISTS (SELECT FROM outbox o WHERE o.job_id = r.job_id)
), steps AS (
    SELECT job_id, seq, from_state, to_state, attempt,
           to_state IN ('COMPLETED', 'FAILED', 'CANCELLED') AS terminal,
           row_number() OVER trail - 1 AS due,
           lag(to_state) OVER trail AS previous,
           coalesce(lag(attempt) OVER trail, 0) AS current,
           lead(seq) OVER trail IS NULL AS last,
           max(seq) FILTER (WHERE to_state = 'CANCELLED') OVER trail AS cancelled_seq,
           max(seq) FILTER (WHERE reason = %(redriven)s) OVER trail AS redriven_seq
    FROM job_state_records
    WINDOW trail AS (PARTITION BY job_id ORDER BY seq)
), judged AS ("""
)

_OFFENDERS: LiteralString = """)
SELECT job_id, min(detail), count(*) OVER ()
FROM judged
WHERE detail IS NOT NULL
GROUP BY job_id
ORDER BY job_id
LIMIT %(shown)s"""

JOBS: LiteralString = "SELECT count(*) FROM jobs"


def statement(invariant: Invariant) -> LiteralString:
    """The whole statement. It returns the first offenders, each with a detail and the number of all offenders."""
    return _SETTING + invariant.sql + _OFFENDERS


async def check(conn: AsyncConnection[Any], limits: Mapping[str, int]) -> list[Finding]:
    """The broken invariants. Empty if every stored job keeps every invariant. See `report`."""
    return list((await report(conn, limits)).findings)


async def report(conn: AsyncConnection[Any], limits: Mapping[str, int]) -> Report:
    """Judge every stored job in one snapshot. `conn` must not be in a transaction.

    `limits` maps each preset to the max_attempts that it has had since its first job. A job of another preset is held
    to the job's own limit, and to the highest limit that any preset can have.
    """
    parameters = {
        "edges": [f"{start or ''}>{end}" for start, ends in TRANSITIONS.items() for end in ends],
        "max_crashes": MAX_CRASHES,
        "max_attempts": MAX_ATTEMPTS.high,
        "presets": list(limits),
        "limits": list(limits.values()),
        "shown": SHOWN,
        "lapsed": Reason.LAPSED,
        "beside_others": Reason.LAPSED_BESIDE_OTHERS,
        "redriven": Reason.REDRIVEN,
    }
    findings = []
    async with conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        [(jobs,)] = await (await conn.execute(JOBS)).fetchall()
        for invariant in INVARIANTS:
            rows = await (await conn.execute(statement(invariant), parameters)).fetchall()
            if rows:
                offenders = tuple((job_id, detail) for job_id, detail, _ in rows)
                findings.append(Finding(invariant, rows[0][2], offenders))
    return Report(jobs, tuple(findings))
