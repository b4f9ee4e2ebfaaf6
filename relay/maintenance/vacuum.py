"""Keeps PostgreSQL fast: removes dead rows from the outbox, and updates the planner's statistics of grown tables.

Both tasks run every two seconds, because autovacuum wakes only once a minute.
"""

from __future__ import annotations

import time
from typing import Final, LiteralString

from psycopg import errors, sql

from engine.storage.connections import Connection
from engine.storage.statements import fetchall, fetchone
from relay.maintenance.tasks import PeriodicTask

DEAD_ROWS: Final = 10_000
HELD_SECONDS: Final = 60.0
"""Pause after a VACUUM that could not remove the dead rows, because a snapshot still holds them."""
VACUUM_SECONDS: Final = 900.0
"""How long one VACUUM may take. One that is cut off has to begin again from the start."""
ANALYZED: Final = ["jobs", "outbox", "outbox_events", "job_results", "job_state_records", "job_progress"]

# The planner takes a table that was empty at its last VACUUM or ANALYZE for empty, however much the table has grown:
# plans then read the whole table for each row. ANALYZE also makes every session plan again.
OUTGROWN: LiteralString = """
SELECT s.relname FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE schemaname = current_schema() AND s.relname = ANY (%s) AND n_live_tup > 500 + 4 * greatest(reltuples, 0)
"""

DEAD: LiteralString = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'outbox'::regclass"
VACUUM: LiteralString = "VACUUM (SKIP_LOCKED, TRUNCATE false) outbox"
WARNING: Final = "01000"


class Vacuum:
    """Vacuums the outbox when DEAD_ROWS rows are dead: so many triple the cost of a claim."""

    def __init__(self) -> None:
        self._not_before = 0.0

    async def run(self, conn: Connection, _limit: int = 0) -> int:
        """The work of a periodic task; returns 0 rows. Raises InsufficientPrivilege."""
        if time.monotonic() < self._not_before or await _dead_rows(conn) < DEAD_ROWS:
            return 0
        await _checked(conn, VACUUM)
        held = await _dead_rows(conn) >= DEAD_ROWS
        self._not_before = time.monotonic() + (HELD_SECONDS if held else 0.0)
        return 0


def vacuum_tasks() -> list[PeriodicTask]:
    return [
        PeriodicTask("vacuum", 2.0, Vacuum().run, VACUUM_SECONDS),
        PeriodicTask("analyze", 2.0, analyze),
    ]


async def analyze(conn: Connection, _limit: int = 0) -> int:
    """Analyze the tables that have outgrown the planner's statistics. Raises InsufficientPrivilege."""
    for (table,) in await fetchall(conn, OUTGROWN, [ANALYZED]):
        await _checked(conn, sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    return 0


async def _checked(conn: Connection, statement: LiteralString | sql.Composed) -> None:
    """Run VACUUM or ANALYZE. Raises InsufficientPrivilege, for which the server only warns and does nothing."""
    warned: list[str] = []

    def note(notice: errors.Diagnostic) -> None:
        # The warning of a locked table has a code of its own.
        if notice.sqlstate == WARNING:
            warned.append(notice.message_primary or "")

    conn.add_notice_handler(note)
    try:
        await conn.execute(statement)
    finally:
        conn.remove_notice_handler(note)
    if warned:
        raise errors.InsufficientPrivilege(warned[0])


async def _dead_rows(conn: Connection) -> int:
    row = await fetchone(conn, DEAD)
    return int(row[0]) if row else 0
