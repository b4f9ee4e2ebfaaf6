"""yoyo's bookkeeping over this project's own connection, and a checksum of each file, which yoyo does not keep."""

from __future__ import annotations

import hashlib
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.migrations import default_migration_table

from engine.errors import DatabaseUnavailable, SchemaMismatch
from engine.settings import schema_of_environment
from engine.storage.connections import connect_sync
from engine.storage.session import refuse_pooler_sync
from migrations.rights import explained

# "outrider" in ASCII, to be recognised in pg_locks.
LOCK_KEY = 0x6F757472_69646572
POLL_SECONDS = 0.1

CREATE_CHECKSUMS: LiteralString = """
CREATE TABLE IF NOT EXISTS _migration_checksum (migration_id text PRIMARY KEY, sha256 text NOT NULL)"""
KEEP_CHECKSUM: LiteralString = "INSERT INTO _migration_checksum (migration_id, sha256) VALUES (%s, %s)"
FOREIGN: LiteralString = """
SELECT migration_id FROM _yoyo_migration WHERE migration_id NOT IN (SELECT migration_id FROM _migration_checksum)"""
DROP_CHECKSUM: LiteralString = "DELETE FROM _migration_checksum WHERE migration_id = %s"
FOUND_SCHEMA: LiteralString = "SELECT to_regnamespace(%s) IS NOT NULL"


# yoyo has no types.
class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """The one session that may migrate: it holds the advisory lock and has the bookkeeping tables.

    yoyo's own `get_backend` is not used, because it parses URLs unlike libpq and tries out DDL at each start.
    """

    connection: psycopg.Connection[TupleRow]

    def __init__(self, conn: psycopg.Connection[TupleRow]) -> None:
        self._given = conn
        super().__init__(None, default_migration_table)
        conn.execute(CREATE_CHECKSUMS)
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)

    def connect(self, _: None) -> psycopg.Connection[TupleRow]:
        return self._given

    def list_tables(self, **_: Any) -> list[str]:
        tables = self.connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        )
        return [name for (name,) in tables]

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """Replaces yoyo's method, which needs a user name, absent for a bare uid, and asks DNS for the host name."""
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self.connection.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def foreign(self) -> set[str]:
        """The applied migrations of other applications in this schema: they have no checksum."""
        return {id_ for (id_,) in self.connection.execute(FOREIGN)}

    def record(self, migration: Any, operation: Literal["apply", "rollback"]) -> None:
        """Mark or unmark `migration`, in the caller's transaction."""
        if operation == "apply":
            self.mark_one(migration, log=False)
            self.connection.execute(KEEP_CHECKSUM, [migration.id, checksum(Path(migration.path))])
        else:
            self.unmark_one(migration, log=False)
            self.connection.execute(DROP_CHECKSUM, [migration.id])
        self.log_migration(migration, operation)


@contextmanager
def session(url: str, wait_seconds: float) -> Iterator[Backend]:
    """The session that holds the migration lock.

    Creates the schema of OUTRIDER_SCHEMA. Raises UnfitDatabase, SchemaMismatch when the role may not change the schema,
    and DatabaseUnavailable when the server does not answer, or when another session holds the lock for `wait_seconds`.
    """
    with connection(url) as conn:
        deadline = time.monotonic() + wait_seconds
        # Polled, because a session blocked in pg_advisory_lock keeps a snapshot. The CREATE INDEX CONCURRENTLY of the
        # session that holds the lock would wait for that snapshot: a deadlock. A dead session releases the lock.
        while not _locked(conn):
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"another process has been migrating for {wait_seconds:g} s")
            time.sleep(POLL_SECONDS)
        _create_schema(conn)
        with explained(conn):
            yield Backend(conn)


def refuse_pooler(url: str) -> None:
    """Raise UnfitDatabase behind a transaction pooler: there the migration lock would be another session's."""
    with connection(url) as first, connection(url) as second:
        refuse_pooler_sync(first, second)


@contextmanager
def connection(url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    with connect_sync(url, name="migrate") as conn:
        yield conn


def _create_schema(conn: psycopg.Connection[TupleRow]) -> None:
    """Create the schema of OUTRIDER_SCHEMA. IF NOT EXISTS would need the right to create even where it exists."""
    name = schema_of_environment()
    if name is None or conn.execute(FOUND_SCHEMA, [name]).fetchone() == (True,):
        return
    try:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaMismatch(
            f"the schema {name} does not exist, and {conn.info.user} may not create it",
            f"as the database's owner, run `CREATE SCHEMA {name} AUTHORIZATION {conn.info.user}`",
        ) from error


def _locked(conn: psycopg.Connection[TupleRow]) -> bool:
    row = conn.execute("SELECT pg_try_advisory_lock(%s)", [LOCK_KEY]).fetchone()
    return row == (True,)


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
