"""Enqueue: the move that begins every job. One statement inserts the job, its outbox row and its first audit row.

`enqueue` and `enqueue_many` are an application's, on its own connection: they call functions of the schema.
`enqueue_group` is web's, on a connection with pinned plans.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, NamedTuple, overload
from uuid import UUID

import orjson
from psycopg import AsyncConnection, Connection

from engine.errors import IdempotencyMismatch, InvalidJob, Overloaded, Problem
from engine.ids import uuid7
from engine.limits import RUN_AT
from engine.model import Job, NewJob, Reason
from engine.moves._enqueue_call import call, call_async, require_psycopg
from engine.moves.validation import check
from engine.storage.literals import array
from engine.storage.statements import fetchone, timed
from engine.tables.idempotency import KEY_HOURS, Held, IdempotencyKey, KeyName, held_answers
from engine.text import json_bytes

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
    RETURNING id, user_id, preset, priority, run_at
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
SELECT array(SELECT no FROM fresh),
       (SELECT outrider_hint(array_agg(DISTINCT preset)) FROM job WHERE run_at <= now() HAVING count(*) > 0)
"""


@dataclass(frozen=True, slots=True)
class Submission:
    """Jobs that are accepted together or not at all.

    `ids` are their ids, in the order of `jobs`: those given, others drawn here, so that a group can be sent again.
    """

    jobs: tuple[NewJob, ...]
    key: IdempotencyKey | None = None
    ids: tuple[UUID, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(new.id or uuid7() for new in self.jobs))


class Accepted(NamedTuple):
    """The ids of the jobs, in the order given. `replayed` is true if an earlier submission had the same key."""

    job_ids: tuple[UUID, ...]
    replayed: bool = False


@overload
def enqueue(
    conn: AsyncConnection[Any], new: NewJob, *, schema: str | None = None
) -> Coroutine[Any, Any, Job]: ...
@overload
def enqueue(conn: Connection[Any], new: NewJob, *, schema: str | None = None) -> Job: ...
def enqueue(
    conn: Connection[Any] | AsyncConnection[Any], new: NewJob, *, schema: str | None = None
) -> Job | Coroutine[Any, Any, Job]:
    """`await enqueue(conn, new)` adds `new` in the caller's transaction. The job exists if and when the caller commits.

    `conn` is a connection of psycopg, with any row or cursor factory and any settings: an AsyncConnection, or without
    `await` a Connection. On a connection in autocommit mode, outside of a transaction, the job exists at once. An idle
    worker is told by the commit itself, and starts the job within milliseconds; a busy one looks by itself. With
    Pub/Sub that holds for a relay, which publishes the job's wake-up.

    `schema` is the schema of the installation. By default it is OUTRIDER_SCHEMA of the environment, or if that is unset
    the first schema in the connection's search_path that has an installation.

    With a given `new.id` the call is repeatable, see NewJob. It waits for another transaction that has just used the
    id. Where that has committed since the caller's transaction took its snapshot (REPEATABLE READ, SERIALIZABLE),
    PostgreSQL reports a serialization failure, and the caller tries its transaction again.

    Raises TypeError at once for any other connection, InvalidJob with every field that breaks a limit of `NewJob`,
    before anything is sent to the database, DuplicateJob, after which the transaction can go on, and SchemaMismatch
    where no installation is found. Errors of the database are psycopg's own.
    """
    # A function that is not `async` also stops a caller who forgets the `await`, as callers with another driver do.
    require_psycopg(conn)
    if isinstance(conn, AsyncConnection):
        return _enqueue(conn, new, schema)
    check(new)
    [job] = call(conn, [new], schema)
    return job


@overload
def enqueue_many(
    conn: AsyncConnection[Any], news: Iterable[NewJob], *, schema: str | None = None
) -> Coroutine[Any, Any, list[Job]]: ...
@overload
def enqueue_many(
    conn: Connection[Any], news: Iterable[NewJob], *, schema: str | None = None
) -> list[Job]: ...
def enqueue_many(
    conn: Connection[Any] | AsyncConnection[Any], news: Iterable[NewJob], *, schema: str | None = None
) -> list[Job] | Coroutine[Any, Any, list[Job]]:
    """`await enqueue_many(conn, news)` adds all of `news` by one statement, or none. The jobs are in the order given.

    See `enqueue`. The same id twice is the same job twice, or DuplicateJob. InvalidJob names each fault by the job's
    place, as in `/3/content`.
    """
    require_psycopg(conn)
    news = list(news)
    if isinstance(conn, AsyncConnection):
        return _enqueue_many(conn, news, schema)
    _check_all(news)
    return call(conn, news, schema) if news else []


async def _enqueue(conn: AsyncConnection[Any], new: NewJob, schema: str | None) -> Job:
    check(new)
    [job] = await call_async(conn, [new], schema)
    return job


async def _enqueue_many(conn: AsyncConnection[Any], news: list[NewJob], schema: str | None) -> list[Job]:
    _check_all(news)
    return await call_async(conn, news, schema) if news else []


def _check_all(news: Sequence[NewJob]) -> None:
    problems: list[Problem] = []
    for place, new in enumerate(news):
        try:
            check(new)
        except InvalidJob as error:
            problems += [Problem(f"/{place}{each.pointer}", each.detail) for each in error.problems]
    if problems:
        raise InvalidJob(problems)


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
            held[name] = (each.key.fingerprint, each.ids)
    held |= await held_answers(conn, [name for name in keyed if name not in held])
    return [_answer(each, held) for each in submissions]


def _parameters(submissions: Sequence[Submission]) -> dict[str, object]:
    keyed = [each for each in submissions if each.key is not None]
    key_no = {id(each): no for no, each in enumerate(keyed, 1)}
    jobs = [
        (job_id, new, key_no.get(id(each)))
        for each in submissions
        for job_id, new in zip(each.ids, each.jobs, strict=True)
    ]
    keys = [each.key for each in keyed if each.key is not None]
    columns: dict[str, Iterable[object]] = {
        "id": (job_id for job_id, *_ in jobs),
        "user_id": (new.user_id for _, new, _ in jobs),
        "preset": (new.preset for _, new, _ in jobs),
        "content": (new.content for _, new, _ in jobs),
        "metadata": (json_bytes(dict(new.metadata)).decode() for _, new, _ in jobs),
        "priority": (new.priority for _, new, _ in jobs),
        "max_attempts": (new.max_attempts for _, new, _ in jobs),
        "timeout_seconds": (new.timeout_seconds for _, new, _ in jobs),
        "traceparent": (new.traceparent for _, new, _ in jobs),
        "run_at": (new.run_at and RUN_AT.clamped(new.run_at).isoformat() for _, new, _ in jobs),
        "delay_seconds": (new.delay_seconds for _, new, _ in jobs),
        "key_no": (no for *_, no in jobs),
        "owner": (key.owner for key in keys),
        "route": (key.route for key in keys),
        "key": (key.key for key in keys),
        "fingerprint": ("\\x" + key.fingerprint.hex() for key in keys),
        "answer": (orjson.dumps(each.ids).decode() for each in keyed),
    }
    return {name: array(values) for name, values in columns.items()} | {
        "key_hours": KEY_HOURS,
        "reason": Reason.ENQUEUED,
    }


def _answer(submission: Submission, held: Held) -> Accepted | Exception:
    if submission.key is None:
        return Accepted(submission.ids)
    if submission.key.name not in held:
        return Overloaded("the idempotency key has just expired")
    fingerprint, ids = held[submission.key.name]
    if fingerprint != submission.key.fingerprint:
        return IdempotencyMismatch("this Idempotency-Key was used with another body")
    return Accepted(ids, replayed=ids != submission.ids)
