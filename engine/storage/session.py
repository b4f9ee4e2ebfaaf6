"""The settings of every session, and the databases that are refused.

A role, a database, a service file, PGOPTIONS or a URL may set anything. Our statements, and psycopg's reading of the
answers, hold for the values below, so every connection SETs them after connecting. In the startup packet they would
replace the options of a service file, and PgBouncer would refuse or drop them.

Left as found: `role`, `default_transaction_read_only`, `synchronous_commit` and the planner's costs. They are an
operator's decisions about rights, fail-over, durability and hardware, which no statement of ours may overrule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection, AsyncCursor, Connection
from psycopg.rows import TupleRow, tuple_row

from engine.errors import UnfitDatabase
from engine.settings import schema_of_environment

SESSION: Final[Mapping[str, str]] = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    # A time of the year 9999 in UTC is none that Python can hold in the zones to the east.
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    # VACUUM and ANALYZE report a missing right by a warning alone.
    "client_min_messages": "notice",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # Each use has a deadline of its own, and a pool's connections are idle for long.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    # A process that is frozen between two statements must not keep its row locks.
    "idle_in_transaction_session_timeout": "60s",
}

# An empty queue once made the planner choose sequential scans for the prepared claim, and keep them (p99 5.6 s).
# Every hot statement has one good plan, by index and nested loop. These settings allow no other, and plan it once.
PINNED: Final[Mapping[str, str]] = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_nestloop": "on",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}

_FOUND: LiteralString = """
current_setting('server_encoding'), pg_current_xact_id_if_assigned()::text,
current_setting('transaction_read_only')::boolean"""

# A severed connection's statement would run on in the server, and wait for a lock without end. Not every platform can
# notice that a client has gone, and not every version has a time-out for transactions.
_BY_SERVER: LiteralString = """
CASE WHEN version() ~* 'linux|darwin|bsd' THEN set_config('client_connection_check_interval', '5s', false) END,
CASE WHEN current_setting('server_version_num')::int >= 170000 THEN set_config('transaction_timeout', '0', false) END
"""

# Where the path does not name pg_temp, it comes first: a temporary table that effects make would hide one of ours.
# Alone it would become the schema that a role without any other creates its tables in.
_TEMPORARY_LAST: LiteralString = """
set_config('search_path', CASE
    WHEN current_setting('search_path') LIKE '%pg_temp%' OR current_schema() IS NULL THEN current_setting('search_path')
    ELSE concat_ws(', ', nullif(current_setting('search_path'), ''), 'pg_temp') END, false)"""

# Takes the session back from an author. What the author deferred happens first, under the author's settings.
REGAIN: LiteralString = "SET CONSTRAINTS ALL IMMEDIATE; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; "

MARK: LiteralString = "SELECT set_config('outrider.session', %s, false)"
MARKED: LiteralString = "SELECT current_setting('outrider.session', true), pg_backend_pid()"
MARKS: Final = ("first", "second")

ENCODING: Final = "UTF8"


class Found(NamedTuple):
    """What `set_up` found: the database's encoding, and the open transaction's id, if it has written, and kind."""

    encoding: str
    transaction: str | None
    read_only: bool


async def set_up(
    conn: AsyncConnection[Any], more: Mapping[str, str] | None = None, *, regain: bool = False
) -> Found:
    """Give the session its settings, and those of `more`. One round trip.

    `regain` first takes back what an author has changed, in the author's open transaction. Raises UnfitDatabase, and
    the error of a constraint that the author deferred.
    """
    statement = (REGAIN.encode() if regain else b"") + _statement(more or {})
    # Not conn.cursor(): an author may have changed the connection's factories.
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, prepare=False)
        await cursor.set_result(-1)
        return _judged(await cursor.fetchone())


def set_up_sync(conn: Connection[Any], more: Mapping[str, str] | None = None) -> None:
    """`set_up` for a connection without an event loop."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        _judged(cursor.execute(_statement(more or {}), prepare=False).fetchone())


async def refuse_pooler(first: AsyncConnection[Any], second: AsyncConnection[Any]) -> int:
    """The server's process id behind `first`. Raises UnfitDatabase if the connections do not keep their sessions."""
    for conn, mark in zip((first, second), MARKS, strict=True):
        await conn.execute(MARK, [mark])
    return _direct([await (await conn.execute(MARKED)).fetchone() for conn in (first, second, first, second)])


def refuse_pooler_sync(first: Connection[Any], second: Connection[Any]) -> int:
    """`refuse_pooler` for connections without an event loop."""
    for conn, mark in zip((first, second), MARKS, strict=True):
        conn.execute(MARK, [mark])
    return _direct([conn.execute(MARKED).fetchone() for conn in (first, second, first, second)])


def _statement(more: Mapping[str, str]) -> bytes:
    """Text of ASCII alone: the session's encoding is not ours yet."""
    settings = {**SESSION, **more}
    sets = [f"set_config('{key}', '{value}', false)" for key, value in settings.items()]
    if (name := schema_of_environment()) is not None:
        sets.append(f"""set_config('search_path', '"{name}", pg_temp', false)""")
    else:
        sets.append(_TEMPORARY_LAST)
    return f"SELECT {_FOUND}, {', '.join(sets)}, {_BY_SERVER}".encode("ascii")


def _judged(row: TupleRow | None) -> Found:
    assert row is not None
    found = Found(*row[: len(Found._fields)])
    if found.encoding != ENCODING:
        raise UnfitDatabase(
            f"the database's encoding is {found.encoding}, and jobs hold any text",
            f"create a database with ENCODING '{ENCODING}' TEMPLATE template0, and point OUTRIDER_DATABASE_URL to it",
        )
    return found


def _direct(seen: Sequence[TupleRow | None]) -> int:
    """Decide by what each connection reads of its own mark, in turns.

    A transaction pooler gives its one idle session to the next query, so both connections see the same mark.
    """
    marks, sessions = _columns(seen)
    if marks != list(MARKS) * 2 or len(set(sessions)) != len(MARKS):
        raise UnfitDatabase(
            "a transaction pooler is in between: connections do not keep their sessions",
            "point OUTRIDER_DATABASE_URL directly at PostgreSQL, or use pool_mode=session: settings, locks and LISTEN"
            " belong to a session",
        )
    return int(sessions[0])


def _columns(seen: Iterable[TupleRow | None]) -> tuple[list[Any], list[Any]]:
    rows = [row or (None, None) for row in seen]
    return [row[0] for row in rows], [row[1] for row in rows]
