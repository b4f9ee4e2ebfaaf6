"""The schema's versions: `sql/NNNN.verb-noun.sql`, each with a `.rollback.sql` beside it.

A file is sent whole and marked in the same transaction. A file that begins with `-- transactional: false` holds one
repeatable statement (`CREATE INDEX CONCURRENTLY IF NOT EXISTS`), and is marked after that statement.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from yoyo import read_migrations

from engine.errors import SchemaMismatch
from migrations import rights
from migrations.backend import Backend, checksum, connection, refuse_pooler, session

SQL = Path(__file__).with_name("sql")
WAIT_SECONDS = 60.0
MIGRATE = "run `outrider migrate up`"

# An application may keep its own migrations in the same schema, in the same tables of yoyo: ours have a checksum.
APPLIED_IDS: LiteralString = "SELECT migration_id FROM _yoyo_migration"
APPLIED: LiteralString = """
SELECT migration_id, applied_at_utc, sha256
FROM _yoyo_migration JOIN _migration_checksum USING (migration_id)
ORDER BY applied_at_utc, migration_id"""
INVALID_INDEXES: LiteralString = """
SELECT n.nspname, c.relname FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND n.nspname = current_schema() AND strpos(%s, c.relname) > 0"""


@dataclass(frozen=True, slots=True)
class Status:
    """One version. `changed`: the file differs from the applied one; `unknown`: applied, but not in this code."""

    id: str
    state: Literal["applied", "pending", "changed", "unknown"]
    applied_at: datetime | None


def up(url: str, *, directory: Path = SQL, wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """Apply the pending versions and return their ids. A file that fails is rolled back; those before it stay.

    Raises SchemaMismatch when a file fails, DatabaseUnavailable without a connection or without the lock.
    """
    refuse_pooler(url)
    if all(each.state != "pending" for each in status(url, directory=directory)):
        # A role without the right to create tables may ask, too.
        return []
    with session(url, wait_seconds) as backend:
        known = _read(directory)
        if taken := backend.foreign() & known.keys:
            raise SchemaMismatch(
                f"another application's migration is called {', '.join(sorted(taken))} too",
                "give Outrider a schema of its own, by search_path in OUTRIDER_DATABASE_URL",
            )
        pending = backend.to_apply(known)
        for migration in pending:
            _run(backend, migration, "apply", Path(migration.path))
        return [migration.id for migration in pending]


def down(url: str, count: int = 1, *, directory: Path = SQL, wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """Roll back the latest `count` versions and return their ids. Raises the errors of `up`."""
    refuse_pooler(url)
    with session(url, wait_seconds) as backend:
        known = _read(directory)
        if unknown := {id_ for id_, *_ in backend.connection.execute(APPLIED)} - known.keys:
            raise SchemaMismatch(f"only newer code can roll back {', '.join(sorted(unknown))}")
        latest = backend.to_rollback(known)[:count]
        for migration in latest:
            _run(backend, migration, "rollback", Path(migration.path).with_suffix(".rollback.sql"))
        return [migration.id for migration in latest]


def status(url: str, *, directory: Path = SQL) -> list[Status]:
    """Every version that this code or the database knows, in order. Writes nothing."""
    with connection(url) as conn, rights.explained(conn):
        try:
            applied = {id_: (at, sha256) for id_, at, sha256 in conn.execute(APPLIED)}
        except psycopg.errors.UndefinedTable:
            applied = {}
    known = _read(directory)
    ours = [_status(migration, *applied.get(migration.id, (None, None))) for migration in known]
    newer = [Status(id_, "unknown", _utc(at)) for id_, (at, _) in applied.items() if id_ not in known.keys]
    return ours + newer


async def check(conn: AsyncConnection[Any]) -> None:
    """Raise SchemaMismatch unless the role sees every version of this code. One query; autocommit.

    Unknown versions are no fault: during a rolling upgrade the schema is ahead of the processes that still run, and
    every statement names its columns.
    """
    try:
        applied = {id_ for (id_,) in await (await conn.execute(APPLIED_IDS)).fetchall()}
    except psycopg.errors.UndefinedTable:
        [(role, schema, search_path, *_)] = await (await conn.execute(rights.WHO)).fetchall()
        if schema is None:
            raise rights.unusable(role, search_path) from None
        raise SchemaMismatch("the database has no schema yet", MIGRATE) from None
    except psycopg.errors.InsufficientPrivilege:
        await rights.check(conn, rights.NEEDS)
        raise
    if missing := _ids() - applied:
        raise SchemaMismatch(f"the schema lacks {', '.join(sorted(missing))}", MIGRATE)


def _run(backend: Backend, migration: Any, operation: Literal["apply", "rollback"], path: Path) -> None:
    conn = backend.connection
    try:
        # Sent whole, because yoyo's splitter joins and cuts statements in the wrong places.
        script = path.read_bytes()
        if migration.use_transactions:
            with conn.transaction():
                conn.execute(script)
                backend.record(migration, operation)
        else:
            _drop_invalid_indexes(conn, script.decode())
            conn.execute(script)
            with conn.transaction():
                backend.record(migration, operation)
    except FileNotFoundError:
        raise SchemaMismatch(f"{migration.id} cannot be rolled back", f"there is no {path.name}") from None
    except rights.REFUSED:
        raise  # explained by the session
    except psycopg.Error as error:
        raise SchemaMismatch(
            f"{operation} of {migration.id} failed: {str(error).strip()}", "versions before it stay applied"
        ) from error


def _drop_invalid_indexes(conn: psycopg.Connection[Any], script: str) -> None:
    """Drop what an earlier, failed run of `script` has left: IF NOT EXISTS would take such an index for valid."""
    for name in conn.execute(INVALID_INDEXES, [script]).fetchall():
        conn.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(*name)))


def _read(directory: Path) -> Any:
    return read_migrations(glob.escape(str(directory)))


@cache
def _ids() -> frozenset[str]:
    return frozenset(_read(SQL).keys)


def _status(migration: Any, applied_at: datetime | None, sha256: str | None) -> Status:
    if applied_at is None:
        return Status(migration.id, "pending", None)
    changed = sha256 is not None and sha256 != checksum(Path(migration.path))
    return Status(migration.id, "changed" if changed else "applied", _utc(applied_at))


def _utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)
