"""Prunes: deletes rows that are not needed any more, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, LiteralString

from psycopg import AsyncConnection

from engine.ids import first_id_of
from relay.maintenance.tasks import PeriodicTask

PRUNE_PROGRESS: LiteralString = """
DELETE FROM job_progress
WHERE job_id = ANY (ARRAY(
    SELECT p.job_id FROM job_progress p
    WHERE NOT EXISTS (SELECT FROM outbox o WHERE o.job_id = p.job_id AND o.attempt = p.attempt)
    LIMIT %s
    FOR UPDATE SKIP LOCKED))
"""

PRUNE_KEYS: LiteralString = """
DELETE FROM idempotency_keys
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE expires_at < now() LIMIT %s FOR UPDATE SKIP LOCKED))
"""

# Without a running relay nothing is pruned: the rows then show since when no relay has reported.
PRUNE_RELAY_STATUS: LiteralString = """
DELETE FROM relay_status
WHERE (relay, topic) IN (
    SELECT relay, topic FROM relay_status WHERE updated_at < now() - interval '1 minute' LIMIT %s)
"""

# Ids are in the order of creation, and a job that finished long ago was created even earlier. The bound therefore
# ends the scan of the primary key where younger jobs begin.
PRUNE_JOBS: LiteralString = """
WITH old AS MATERIALIZED (
    SELECT job_id FROM job_results
    WHERE job_id < %(bound)s AND finished_at < now() - %(days)s * interval '1 day'
    ORDER BY job_id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), history AS (
    DELETE FROM job_state_records WHERE job_id IN (SELECT job_id FROM old)
), asked AS (
    DELETE FROM jobs WHERE id IN (SELECT job_id FROM old)
)
DELETE FROM job_results WHERE job_id IN (SELECT job_id FROM old)
"""


def prune_tasks(retention_days: int) -> list[PeriodicTask]:
    """The pruning tasks. Finished jobs are kept for `retention_days`; 0 keeps them for ever."""
    tasks = [
        PeriodicTask("prune_progress", 30.0, _statement(PRUNE_PROGRESS)),
        PeriodicTask("prune_relay_status", 60.0, _statement(PRUNE_RELAY_STATUS)),
        PeriodicTask("prune_keys", 60.0, _statement(PRUNE_KEYS)),
    ]
    if retention_days:
        tasks.append(
            PeriodicTask("prune_jobs", 60.0, lambda conn, limit: prune_jobs(conn, retention_days, limit))
        )
    return tasks


async def prune_jobs(conn: AsyncConnection[Any], days: int, limit: int) -> int:
    """Delete up to `limit` jobs that finished more than `days` ago, with their results and audit trails."""
    bound = first_id_of(time.time() - (days - 1) * 86_400)  # a day of slack for other clocks
    return (await conn.execute(PRUNE_JOBS, {"days": days, "limit": limit, "bound": bound})).rowcount


def _statement(statement: LiteralString) -> Callable[[AsyncConnection[Any], int], Awaitable[int]]:
    async def work(conn: AsyncConnection[Any], limit: int) -> int:
        return (await conn.execute(statement, [limit])).rowcount

    return work
