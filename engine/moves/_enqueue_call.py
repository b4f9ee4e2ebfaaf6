"""Calls the schema's functions that enqueue, on an application's own connection, whatever its settings are.

The functions are bound to their installation: they write there, whatever the caller's search_path is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

import orjson
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.errors import InvalidSchemaName, UndefinedFunction
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Composed, Identifier

from engine.errors import DuplicateJob, SchemaMismatch
from engine.ids import uuid7
from engine.limits import RUN_AT
from engine.model import Job, NewJob
from engine.settings import schema_of_environment
from engine.text import json_bytes

MENDS: Final = {
    "psycopg_pool": "borrow a connection: `async with pool.connection() as conn`, or `with` if the pool is synchronous",
    "sqlalchemy": "with the dialect postgresql+psycopg, `conn.connection.driver_connection` is one, or"
    " `(await conn.get_raw_connection()).driver_connection`",
    "django": "`connection.ensure_connection()`, then `connection.connection` is one",
}
"""What to do with a connection of another kind, by its package."""
OTHER_MEND: Final = "any other driver calls the SQL function: SELECT outrider_enqueue(…)"

# Text that may be other than ASCII goes as bytes, and the rows come back in binary: client_encoding and DateStyle have
# no say.
_NEW: LiteralString = """
SELECT job_id, created_at FROM {}(
    convert_from(%s, 'UTF8'), %s::text, convert_from(%s, 'UTF8'), convert_from(%s, 'UTF8')::jsonb, %s::integer,
    %s::timestamptz, %s::double precision, %s::integer, %s::integer, %s::text)"""
_MANY: LiteralString = """
SELECT job_id, created_at, replayed, traceparent FROM {}(convert_from(%s, 'UTF8')::json, strict => false)"""


class Answer(NamedTuple):
    """What a function answers for one job. `traceparent` is that of the first call with this id."""

    job_id: UUID
    created_at: datetime
    replayed: bool
    traceparent: str | None


class Call(NamedTuple):
    """A call that enqueues `news`, which have passed the check. `schema` of None means the connection's search_path."""

    news: Sequence[NewJob]
    schema: str | None

    @property
    def _single(self) -> bool:
        """One job under an id that the database draws has a function of its own, at a third of the cost."""
        return len(self.news) == 1 and self.news[0].id is None

    @property
    def function(self) -> str:
        return "outrider_enqueue_new" if self._single else "outrider_enqueue_many"

    @property
    def statement(self) -> Composed:
        return _composed(_NEW if self._single else _MANY, self.function, self.schema)

    @property
    def parameters(self) -> list[object]:
        if self._single:
            [new] = self.news
            texts = {"user_id": new.user_id.encode(), "content": new.content.encode()}
            return list((_members(new, json_bytes(dict(new.metadata))) | texts).values())
        return [orjson.dumps([_as_json(new) for new in self.news])]

    def jobs(self, rows: Sequence[tuple[Any, ...]]) -> list[Job]:
        """The jobs of the answer. Raises DuplicateJob."""
        if self._single:
            [(job_id, created_at)] = rows
            answers = [Answer(job_id, created_at, False, self.news[0].traceparent)]
        else:
            answers = [Answer(*row) for row in rows]
        if answers[0].created_at is None:
            raise DuplicateJob(answers[0].job_id)
        return [_job(new, answer) for new, answer in zip(self.news, answers, strict=True)]


def call(conn: Connection[Any], news: Sequence[NewJob], schema: str | None) -> list[Job]:
    """Enqueue `news`, at least one. Raises DuplicateJob and SchemaMismatch."""
    asked = Call(news, schema or schema_of_environment())
    with _explained(asked), Cursor(conn, row_factory=tuple_row) as cursor:
        cursor.execute(asked.statement, asked.parameters, binary=True)
        rows = cursor.fetchall()
    return asked.jobs(rows)


async def call_async(conn: AsyncConnection[Any], news: Sequence[NewJob], schema: str | None) -> list[Job]:
    """As `call`, on an asynchronous connection."""
    asked = Call(news, schema or schema_of_environment())
    with _explained(asked):
        async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
            await cursor.execute(asked.statement, asked.parameters, binary=True)
            rows = await cursor.fetchall()
    return asked.jobs(rows)


def require_psycopg(conn: object) -> None:
    """Raise TypeError, with what to do instead, unless `conn` is a connection of psycopg."""
    if not isinstance(conn, AsyncConnection | Connection):
        kind = type(conn)
        mend = MENDS.get(kind.__module__.partition(".")[0], OTHER_MEND)
        raise TypeError(
            f"enqueue needs a psycopg Connection or AsyncConnection, not {kind.__module__}.{kind.__qualname__}: {mend}"
        )


@contextmanager
def _explained(asked: Call) -> Iterator[None]:
    try:
        yield
    except (UndefinedFunction, InvalidSchemaName) as error:
        if error.diag.context:
            # The function was found. What is missing is something that it calls, as a trigger of the caller's own.
            raise
        where = f"the schema {asked.schema!r}" if asked.schema else "the connection's search_path"
        raise SchemaMismatch(
            f"{where} has no {asked.function}, or none that this role may see: name the installation by"
            " `schema=` or OUTRIDER_SCHEMA, or run `outrider migrate up` if it is older than this code"
        ) from error


@cache
def _composed(text: LiteralString, function: str, schema: str | None) -> Composed:
    return SQL(text).format(Identifier(schema, function) if schema else Identifier(function))


def _members(new: NewJob, metadata: object) -> dict[str, object]:
    """The members of a job but its id, in the order of the parameters of _NEW."""
    return {
        "user_id": new.user_id,
        "preset": new.preset,
        "content": new.content,
        "metadata": metadata,
        "priority": new.priority,
        "run_at": new.run_at and RUN_AT.clamped(new.run_at).isoformat(),
        "delay_seconds": None if new.delay_seconds is None else float(new.delay_seconds),
        "max_attempts": new.max_attempts,
        "timeout_seconds": new.timeout_seconds,
        "traceparent": new.traceparent,
    }


def _as_json(new: NewJob) -> dict[str, object]:
    metadata = orjson.Fragment(json_bytes(dict(new.metadata)))
    return {"job_id": str(new.id or uuid7()), **_members(new, metadata)}


def _job(new: NewJob, answer: Answer) -> Job:
    return Job(
        id=answer.job_id,
        user_id=new.user_id,
        preset=new.preset,
        content=new.content,
        metadata=dict(new.metadata),
        priority=new.priority,
        created_at=answer.created_at,
        traceparent=answer.traceparent,
        replayed=answer.replayed,
    )
