"""Keeps PostgreSQL quick: clears the queue's head of dead rows, and tells the planner of tables that have grown.

Both run every two seconds, for autovacuum wakes once a minute.
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
"""How long to leave dead rows alone that a VACUUM could not remove: a held snapshot keeps them."""
ANALYZED: Final = ["jobs", "outbox", "outbox_events", "job_results", "job_state_records", "job_progress"]

# A table that was empty at its last VACUUM or ANALYZE is planned for as if it still were, however it has grown: plans
# then read all of it for each row. autovacuum wakes once a minute; ANALYZE also has every session plan anew.
OUTGROWN: LiteralString = """
SELECT s.relname FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE schemaname = current_schema() AND s.relname = ANY (%s) AND n_live_tup > 500 + 4 * greatest(reltuples, 0)
"""

DEAD: LiteralString = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'outbox'::regclass"
VACUUM: LiteralString = "VACUUM (SKIP_LOCKED, TRUNCATE false) outbox"
WARNING: Final = "01000"


class Vacuum:
    """VACUUM of the outbox, where its dead rows have become many: they triple the cost of a claim."""

    def __init__(self) -> None:
        self._not_before = 0.0

    async def run(self, conn: Connection) -> int:
        """A periodic task's work; it moves no rows. Raises InsufficientPrivilege."""
        if time.monotonic() < self._not_before or await _dead_rows(conn) < DEAD_ROWS:
            return 0
        await _checked(conn, VACUUM)
        held = await _dead_rows(conn) >= DEAD_ROWS
        self._not_before = time.monotonic() + (HELD_SECONDS if held else 0.0)
        return 0


def vacuum_tasks() -> list[PeriodicTask]:
    return [PeriodicTask("vacuum", 2.0, Vacuum().run), PeriodicTask("analyze", 2.0, analyze)]


async def analyze(conn: Connection) -> int:
    """ANALYZE the tables that have outgrown what the planner knows of them. Raises InsufficientPrivilege."""
    for (table,) in await fetchall(conn, OUTGROWN, [ANALYZED]):
        await _checked(conn, sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    return 0


async def _checked(conn: Connection, statement: LiteralString | sql.Composed) -> None:
    """Run VACUUM or ANALYZE. Raises InsufficientPrivilege where the server warns of that and does nothing."""
    warned: list[str] = []

    def note(notice: errors.Diagnostic) -> None:
        if notice.sqlstate == WARNING:  # a table that is locked has a code of its own
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
