"""Calls the schema's function that enqueues, on an application's own connection, whatever its settings are.

The function is bound to its installation: it writes there, whatever the caller's search_path is.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.errors import InvalidSchemaName, UndefinedFunction
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Composed, Identifier

from engine.errors import DuplicateJob, SchemaMismatch

FUNCTION: Final = "outrider_enqueue_many"

MENDS: Final = {
    "psycopg": "a synchronous connection calls the SQL function: SELECT outrider_enqueue(…)",
    "psycopg_pool": "borrow a connection: `async with pool.connection() as conn`",
    "sqlalchemy": "with the dialect postgresql+psycopg, `(await conn.get_raw_connection()).driver_connection` is one",
}
"""What to do with a connection of another kind, by its package."""
OTHER_MEND: Final = "any other driver calls the SQL function: SELECT outrider_enqueue(…)"


class Enqueued(NamedTuple):
    """What the function answers for one job. `traceparent` is that of the first call with this id."""

    job_id: UUID
    created_at: datetime
    replayed: bool
    traceparent: str | None


async def call(conn: AsyncConnection[Any], schema: str | None, jobs: bytes) -> list[Enqueued]:
    """Enqueue `jobs`, a JSON array with at least one job. `schema` of None means the connection's search_path.

    Raises DuplicateJob and SchemaMismatch.
    """
    try:
        # Bytes there and binary rows back: neither client_encoding nor DateStyle has a say.
        async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
            await cursor.execute(_statement(schema), [jobs], binary=True)
            rows = await cursor.fetchall()
    except (UndefinedFunction, InvalidSchemaName) as error:
        if error.diag.context:
            # The function was found. What is missing is something that it calls, as a trigger of the caller's own.
            raise
        where = f"the schema {schema!r}" if schema else "the connection's search_path"
        raise SchemaMismatch(
            f"{where} has no {FUNCTION}, or none that this role may see: name the installation by `schema=` or"
            " OUTRIDER_SCHEMA, or run `outrider migrate up` if it is older than this code"
        ) from error
    job_id, created_at, *_ = rows[0]
    if created_at is None:
        raise DuplicateJob(job_id)
    return [Enqueued(*row) for row in rows]


@cache
def _statement(schema: str | None) -> Composed:
    return SQL(
        "SELECT job_id, created_at, replayed, traceparent FROM {}(convert_from(%s, 'UTF8')::json, strict => false)"
    ).format(Identifier(schema, FUNCTION) if schema else Identifier(FUNCTION))


def require_async_psycopg(conn: object) -> None:
    """Raise TypeError, with what to do instead, unless `conn` is a psycopg AsyncConnection."""
    if not isinstance(conn, AsyncConnection):
        kind = type(conn)
        mend = MENDS.get(kind.__module__.partition(".")[0], OTHER_MEND)
        raise TypeError(
            f"enqueue needs a psycopg AsyncConnection, not {kind.__module__}.{kind.__qualname__}: {mend}"
        )
