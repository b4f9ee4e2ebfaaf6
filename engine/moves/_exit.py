"""The last part of every move that takes a row out of a lease or out of the queue.

It follows a CTE `held` of locked outbox rows, each with its next state. PENDING keeps the outbox row: the job waits
until `due_at`, or is ready in its old place if `due_at` is NULL. PROCESSING leaves the row alone. A terminal state
replaces the outbox row by a result. Rows are locked before anything is decided, so `cancel_requested` is up to date.

Parameters: `publish_results`, see engine/tables/events.py.
"""

from __future__ import annotations

from typing import LiteralString

from engine.tables.events import RESULT_EVENTS

EXIT: LiteralString = (
    """
, back AS (
    UPDATE outbox q
    SET status = (CASE WHEN h.due_at IS NULL THEN 'ready' ELSE 'waiting' END)::outbox_status,
        worker_id = NULL, version = h.version, errors = h.errors, crashes = h.crashes,
        suspicion = h.suspicion,
        -- A job without `due_at` is due from now on: its attempt was not waiting time.
        run_at = coalesce(h.due_at, clock_timestamp()),
        ready_at = CASE WHEN h.due_at IS NULL THEN clock_timestamp() END
    FROM held h
    WHERE q.job_id = h.job_id AND h.to_state = 'PENDING'
), gone AS (
    DELETE FROM outbox q USING held h WHERE q.job_id = h.job_id AND h.to_state NOT IN ('PENDING', 'PROCESSING')
), result AS (
    INSERT INTO job_results (job_id, user_id, state, error, error_fingerprint, attempt, errors, crashes, version,
                             run_at, started_at, finished_at)
    SELECT job_id, user_id, to_state, error, fingerprint, attempt, errors, crashes, version, run_at, claimed_at,
           finished_at
    FROM held
    WHERE to_state NOT IN ('PENDING', 'PROCESSING')
), audit AS (
    INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
    SELECT job_id, version, from_state, to_state, attempt, reason,
           CASE WHEN error IS NOT NULL THEN jsonb_build_object('error', error) END
    FROM held
    WHERE from_state <> to_state
), ended AS (
    SELECT job_id, user_id, attempt, version, to_state AS state, NULL::json AS output, error, reason,
           CASE WHEN from_state = 'PROCESSING' THEN finished_at - claimed_at END AS ran, finished_at
    FROM held
    WHERE to_state NOT IN ('PENDING', 'PROCESSING')
)"""  # noqa: S608 - constants alone
    + RESULT_EVENTS
)
