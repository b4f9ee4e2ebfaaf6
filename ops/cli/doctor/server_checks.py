"""Checks of `outrider doctor` on the server: whether it can be written, has connections left, and loses no commit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, LiteralString

from engine.errors import DatabaseUnavailable
from engine.storage.connections import Connection
from engine.storage.statements import fetchall
from migrations.readiness import writable
from ops.cli.doctor.result import CheckFailed, CheckResult, CheckWarned, checked

ROOM: Final = 5
"""Free connections below which the next one that a process needs may be refused."""
NEEDED: Final = "a web process takes up to 16 connections, a worker 20, a relay 27"
FULL: Final = ("too many connections", "too many clients", "connection slots")
"""How servers say that a limit is reached. libpq passes no code on."""

# A superuser is held to no limit of roles or databases, and may use the reserved slots too.
LIMITS: LiteralString = """
WITH used AS (
    SELECT count(*) AS all, count(*) FILTER (WHERE datname = current_database()) AS here,
           count(*) FILTER (WHERE usename = current_user) AS mine
    FROM pg_stat_activity WHERE backend_type = 'client backend'
)
SELECT of, taken, most
FROM used, pg_roles r, pg_database d, LATERAL (VALUES
    ('role ' || r.rolname, used.mine, r.rolconnlimit),
    ('database ' || d.datname, used.here, d.datconnlimit),
    ('server', used.all, current_setting('max_connections')::int
                         - current_setting('superuser_reserved_connections')::int)) AS a(of, taken, most)
WHERE r.rolname = current_user AND d.datname = current_database()
  AND most >= 0 AND (NOT r.rolsuper OR of = 'server')
ORDER BY most - taken
LIMIT 1
"""

# Each is a loss of jobs that were accepted: the first by any crash of the server, the others by one of the host.
UNSAFE: LiteralString = """
SELECT name, setting FROM pg_settings
WHERE name IN ('synchronous_commit', 'fsync', 'full_page_writes') AND setting = 'off'
ORDER BY name = 'synchronous_commit' DESC, name
"""


async def examine(conn: Connection) -> AsyncIterator[CheckResult]:
    yield await checked("writable", lambda: _writable(conn))
    yield await checked("connections", lambda: _connections(conn))
    yield await checked("durability", lambda: _durability(conn))


def fix_of(refused: str) -> str:
    """What to do about a connection that was refused with the message `refused`."""
    if any(words in refused for words in FULL):
        return (
            "raise max_connections, or by ALTER ROLE … or ALTER DATABASE … CONNECTION LIMIT that of the role or the "
            f"database, or end other sessions: {NEEDED}"
        )
    return "check that PostgreSQL runs, and that OUTRIDER_DATABASE_URL points to it"


async def _writable(conn: Connection) -> str:
    try:
        await writable(conn)
    except DatabaseUnavailable as error:
        raise CheckFailed(
            str(error),
            "point OUTRIDER_DATABASE_URL at the primary; or, by ALTER ROLE … or ALTER DATABASE …, RESET "
            "default_transaction_read_only",
        ) from error
    return "the database can be written"


async def _connections(conn: Connection) -> str:
    [(limited, taken, most)] = await fetchall(conn, LIMITS)
    found = f"{taken} of the {most} connections of the {limited} are taken"
    if most - taken < ROOM:
        raise CheckFailed(found, fix_of(FULL[0]))
    return found


async def _durability(conn: Connection) -> str:
    off = [name for name, _ in await fetchall(conn, UNSAFE)]
    found = f"{', '.join(off)} is off"
    if "synchronous_commit" in off:
        raise CheckFailed(
            f"{found}: a crash of the server loses jobs that were accepted",
            "by ALTER ROLE …, ALTER DATABASE … or ALTER SYSTEM, RESET synchronous_commit",
        )
    if off:
        raise CheckWarned(
            f"{found}: a crash of the host may lose jobs that were accepted, or the database",
            f"by ALTER SYSTEM, RESET {' and '.join(off)}, unless the data may be lost",
        )
    return "what is committed is on disk"
