"""Enqueue: the move that begins every job. One statement inserts the job, its outbox row and its first audit row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import orjson
from psycopg import AsyncConnection

from engine.errors import IdempotencyMismatch, Overloaded
from engine.limits import RUN_AT
from engine.model import Job, NewJob, Reason
from engine.moves.validation import check
from engine.storage.literals import array
from engine.storage.statements import fetchone, timed
from engine.tables.idempotency import KEY_HOURS, Held, IdempotencyKey, KeyName, held_answers

# Everything after the insert into `jobs` derives from the rows that were inserted. A group that is sent again after a
# connection was lost at COMMIT therefore adds no second outbox row for a job that may have finished meanwhile.
# Keys are inserted in sorted order, because otherwise two groups that share two keys could deadlock.
ENQUEUE: LiteralString = """
WITH new AS MATERIALIZED (
    SELECT * FROM unnest(%(id)s::uuid[], %(user_id)s::text[], %(preset)s::text[], %(content)s::text[],
                         %(metadata)s::jsonb[], %(priority)s::smallint[], %(max_attempts)s::smallint[],
                         %(timeout_seconds)s::integer[], %(traceparent)s::text[], %(run_at)s::timestamptz[],
                         %(delay_seconds)s::double precision[], %(key_no)s::integer[])
    AS new(id, user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, traceparent, run_at,
           delay_seconds, key_no)
), kept AS (
    INSERT INTO idempotency_keys AS held (owner, route, key, fingerprint, answer, expires_at)
    SELECT owner, route, key, fingerprint::bytea, answer::json, clock_timestamp() + %(key_hours)s * interval '1 hour'
    FROM unnest(%(owner)s::text[], %(route)s::text[], %(key)s::text[], %(fingerprint)s::text[], %(answer)s::text[])
         AS k(owner, route, key, fingerprint, answer)
    ORDER BY owner, route, key
    ON CONFLICT (owner, route, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, answer = excluded.answer, expires_at = excluded.expires_at
    WHERE held.expires_at < clock_timestamp()
    RETURNING owner, route, key
), fresh AS MATERIALIZED (
    SELECT k.no FROM unnest(%(owner)s::text[], %(route)s::text[], %(key)s::text[]) WITH ORDINALITY
                     AS k(owner, route, key, no)
    WHERE (k.owner, k.route, k.key) IN (SELECT owner, route, key FROM kept)
), job AS (
    INSERT INTO jobs (id, user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, traceparent,
                      run_at)
    SELECT id, user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, traceparent,
           coalesce(run_at, now() + delay_seconds * interval '1 second', now())
    FROM new
    WHERE key_no IS NULL OR key_no IN (SELECT no FROM fresh)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, user_id, preset, priority, run_at, created_at
), entry AS (
    INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
    SELECT id, user_id, preset, priority,
           (CASE WHEN run_at > now() THEN 'waiting' ELSE 'ready' END)::outbox_status, run_at,
           CASE WHEN run_at > now() THEN NULL ELSE clock_timestamp() END
    FROM job
), audit AS (
    INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason)
    SELECT id, 0, 'PENDING', 0, %(reason)s FROM job
)
SELECT array(SELECT no FROM fresh), (SELECT max(created_at) FROM job)
"""


class Submission(NamedTuple):
    """Jobs that are accepted together or not at all."""

    jobs: tuple[NewJob, ...]
    key: IdempotencyKey | None = None


class Accepted(NamedTuple):
    """The ids of the jobs, in the order given. `replayed` is true if an earlier submission had the same key."""

    job_ids: tuple[UUID, ...]
    replayed: bool = False


async def enqueue(conn: AsyncConnection[Any], new: NewJob) -> Job:
    """Add `new` in the caller's transaction. The job exists if and when the caller commits.

    `conn` is a psycopg AsyncConnection; any row factory will do. On a connection in autocommit mode, outside of a
    transaction, the job exists at once. No NOTIFY is sent: an idle worker finds the job by polling, within about a
    second. With Pub/Sub a relay finds the job and publishes its wake-up.

    Raises InvalidJob with every field that breaks a limit of `NewJob`, before anything is sent to the database. Errors
    of the database are psycopg's own.
    """
    check(new)
    row = await fetchone(conn, ENQUEUE, _parameters([Submission((new,))]))
    assert row is not None
    return Job(
        id=new.id,
        user_id=new.user_id,
        preset=new.preset,
        content=new.content,
        metadata=dict(new.metadata),
        priority=new.priority,
        created_at=row[1],
        traceparent=new.traceparent,
    )


@timed("enqueue")
async def enqueue_group(
    conn: AsyncConnection[Any], submissions: Sequence[Submission]
) -> list[Accepted | Exception]:
    """Add every submission in one statement, which is a transaction of its own on an autocommit connection.

    The call is safe to repeat with the same ids. A submission whose key is held gets the answer of the first
    submission, or IdempotencyMismatch if its body differs. Of equal keys within the group the first is written.
    """
    keyed: dict[KeyName, Submission] = {}
    for each in submissions:
        if each.key is not None:
            keyed.setdefault(each.key.name, each)
    written = [each for each in submissions if each.key is None] + list(keyed.values())
    row = await fetchone(conn, ENQUEUE, _parameters(written))
    assert row is not None
    fresh = {no - 1 for no in row[0]}
    held: Held = {}
    for no, (name, each) in enumerate(keyed.items()):
        if each.key is not None and no in fresh:
            held[name] = (each.key.fingerprint, _ids(each))
    held |= await held_answers(conn, [name for name in keyed if name not in held])
    return [_answer(each, held) for each in submissions]


def _parameters(submissions: Sequence[Submission]) -> dict[str, object]:
    keyed = [each for each in submissions if each.key is not None]
    key_no = {id(each): no for no, each in enumerate(keyed, 1)}
    jobs = [(new, key_no.get(id(each))) for each in submissions for new in each.jobs]
    keys = [each.key for each in keyed if each.key is not None]
    columns: dict[str, Iterable[object]] = {
        "id": (new.id for new, _ in jobs),
        "user_id": (new.user_id for new, _ in jobs),
        "preset": (new.preset for new, _ in jobs),
        "content": (new.content for new, _ in jobs),
        "metadata": (orjson.dumps(dict(new.metadata)).decode() for new, _ in jobs),
        "priority": (new.priority for new, _ in jobs),
        "max_attempts": (new.max_attempts for new, _ in jobs),
        "timeout_seconds": (new.timeout_seconds for new, _ in jobs),
        "traceparent": (new.traceparent for new, _ in jobs),
        "run_at": (new.run_at and RUN_AT.clamped(new.run_at).isoformat() for new, _ in jobs),
        "delay_seconds": (new.delay_seconds for new, _ in jobs),
        "key_no": (no for _, no in jobs),
        "owner": (key.owner for key in keys),
        "route": (key.route for key in keys),
        "key": (key.key for key in keys),
        "fingerprint": ("\\x" + key.fingerprint.hex() for key in keys),
        "answer": (orjson.dumps(_ids(each)).decode() for each in keyed),
    }
    return {name: array(values) for name, values in columns.items()} | {
        "key_hours": KEY_HOURS,
        "reason": Reason.ENQUEUED,
    }


def _answer(submission: Submission, held: Held) -> Accepted | Exception:
    if submission.key is None:
        return Accepted(_ids(submission))
    if submission.key.name not in held:
        return Overloaded("the idempotency key has just expired")
    fingerprint, ids = held[submission.key.name]
    if fingerprint != submission.key.fingerprint:
        return IdempotencyMismatch("this Idempotency-Key was used with another body")
    return Accepted(ids, replayed=ids != _ids(submission))


def _ids(submission: Submission) -> tuple[UUID, ...]:
    return tuple(new.id for new in submission.jobs)
