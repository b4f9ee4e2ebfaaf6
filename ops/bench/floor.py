"""The lower bound for a drained job: bare SQL writes the rows that a worker writes, in batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg

from engine.storage.connections import connect_sync
from engine.storage.session import PINNED

BATCH: Final = 500
IN_FLIGHT: Final = 2
"""Batches that are claimed and not yet finished, with two connections."""
SECONDS: Final = 120.0

# Without a live worker, maintenance would let the attempts lapse.
REGISTER: LiteralString = """
INSERT INTO workers (name, presets, slots, expires_at) VALUES ('floor', '{}', 0, now() + interval '1 hour') RETURNING id
"""

CLAIM: LiteralString = """
WITH taken AS (
    UPDATE outbox
    SET status = 'leased', attempt = attempt + 1, version = version + 1, worker_id = %s, claimed_at = clock_timestamp()
    WHERE job_id = ANY (ARRAY(
        SELECT job_id FROM outbox
        WHERE status = 'ready' AND preset = %s AND priority = 2 AND position > %s
        ORDER BY position LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING job_id, attempt, version, position
), audit AS (
    INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
    SELECT job_id, version, 'PENDING', 'PROCESSING', attempt, 'claimed', '{"worker": 0}' FROM taken
)
SELECT job_id, position, content, metadata::text FROM taken JOIN jobs ON id = job_id
"""

FINISH: LiteralString = """
WITH done AS (
    DELETE FROM outbox WHERE job_id = ANY (%s)
    RETURNING job_id, user_id, attempt, version + 1 AS version, errors, crashes, run_at, claimed_at
), result AS (
    INSERT INTO job_results (job_id, user_id, state, output, execution_metadata, attempt, errors, crashes, version,
                             run_at, started_at)
    SELECT job_id, user_id, 'COMPLETED', 'null', '{"run_seconds": 0.000001, "wait_seconds": 0.000001}', attempt,
           errors, crashes, version, run_at, claimed_at
    FROM done
)
INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)
SELECT job_id, version, 'PROCESSING', 'COMPLETED', attempt, 'completed' FROM done
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class Claims:
    """Claims batch after batch, each above the positions of the last one."""

    def __init__(self, conn: Connection, preset: str) -> None:
        self._conn = conn
        self._preset = preset
        self._low = 0
        row = conn.execute(REGISTER).fetchone()
        assert row is not None
        self._worker_id = row[0]

    def next(self) -> list[UUID]:
        rows = self._conn.execute(CLAIM, [self._worker_id, self._preset, self._low, BATCH]).fetchall()
        self._low = max((row[1] for row in rows), default=self._low)
        return [row[0] for row in rows]


def alternate(url: str, preset: str) -> None:
    """Drain `preset` with one connection: claim, finish, claim, finish."""
    with _connected(url) as conn:
        claims = Claims(conn, preset)
        while ids := claims.next():
            conn.execute(FINISH, [ids])


def overlap(url: str, preset: str) -> None:
    """Drain `preset` with two connections: one claims while the other finishes."""
    claimed: queue.Queue[Sequence[UUID]] = queue.Queue(IN_FLIGHT)
    failed: list[BaseException] = []

    def finish() -> None:
        try:
            with _connected(url) as conn:
                while ids := claimed.get(timeout=SECONDS):
                    conn.execute(FINISH, [ids])
        except BaseException as error:  # noqa: BLE001
            # The waiting thread raises the error.
            failed.append(error)

    finisher = threading.Thread(target=finish, daemon=True)
    with ExitStack() as stack:
        claims = Claims(stack.enter_context(_connected(url)), preset)
        finisher.start()
        while (ids := claims.next()) and not failed:
            claimed.put(ids, timeout=SECONDS)
        claimed.put([], timeout=SECONDS)
        finisher.join(SECONDS)
    if failed:
        raise failed[0]


def _connected(url: str) -> Connection:
    """A connection with the engine's planner settings: on freshly filled tables the planner's own choices vary."""
    return connect_sync(url, name="bench", more=PINNED, prepare_threshold=0)
