"""The PostgreSQL that is measured: durable, in a temporary folder, a new database for each section."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from engine.model import Reason
from ops.harness.postgres import Databases, temporary_server

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "max_connections": "200",
    "track_commit_timestamp": "on",
}

TABLES: Final = ("jobs", "outbox", "job_results", "job_state_records")

# Writes the rows that the API and enqueue write: 225 bytes of content, the size of a short paragraph.
# With a `due` in the future the jobs wait.
FILL: LiteralString = """
WITH job AS (
    INSERT INTO jobs (id, user_id, preset, content, run_at)
    SELECT outrider_uuid7(), 'bench', %(preset)s, repeat('outrider ', 25),
           coalesce(%(due)s::timestamptz, now())
    FROM generate_series(1, %(rows)s)
    RETURNING id, user_id, preset, priority, run_at
), entry AS (
    INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
    SELECT id, user_id, preset, priority,
           (CASE WHEN run_at > now() THEN 'waiting' ELSE 'ready' END)::outbox_status, run_at,
           CASE WHEN run_at > now() THEN NULL ELSE now() END
    FROM job
)
INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason)
SELECT id, 0, 'PENDING', 0, %(reason)s FROM job
"""


@contextmanager
def bench_server() -> Iterator[Databases]:
    """A temporary server. Its files are removed afterwards."""
    with temporary_server(SETTINGS) as url:
        databases = Databases(url)
        try:
            yield databases
        finally:
            databases.close()


def fill(conn: psycopg.Connection, preset: str, rows: int, due: str | None = None) -> None:
    """Add `rows` jobs, due now or at `due`, in the caller's transaction."""
    conn.execute(FILL, {"preset": preset, "rows": rows, "due": due, "reason": Reason.ENQUEUED})


def empty(url: str) -> None:
    """Delete every job. One lock at a time: holding one while waiting for the next would deadlock with the relay."""
    with psycopg.connect(url, autocommit=True) as conn:
        for table in TABLES:
            conn.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))


def settle(conn: psycopg.Connection) -> None:
    """Leave neither dirty pages nor missing statistics to the next measurement. Needs autocommit."""
    tables = sql.SQL(", ").join(map(sql.Identifier, TABLES))
    conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(tables))
    conn.execute("CHECKPOINT")
