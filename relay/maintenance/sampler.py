"""Samples the database into gauges, so that a scrape costs no query."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, LiteralString

from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.queries.queue_stats import EventStats, Queue, QueueStats, event_stats, queue_stats
from engine.storage.connections import PinnedConnection
from engine.storage.statements import fetchall
from engine.storage.throttle import Throttle
from engine.tables.outbox import OutboxStatus
from engine.telemetry.instruments import Figures
from engine.telemetry.metrics import (
    DEAD_TUPLES,
    EVENTS_OLDEST,
    EVENTS_ROWS,
    OUTBOX_OLDEST,
    OUTBOX_ROWS,
    SAMPLED_AT,
    SLOTS_ALIVE,
    TABLE_BYTES,
    WORKERS_ALIVE,
    XMIN_AGE_SECONDS,
    XMIN_AGE_TRANSACTIONS,
)

MAX_SAMPLE_SECONDS: Final = 1.5
"""The most that the throttle counts for a sample: one that an outage held up took long, but the next is due soon."""
STALE_SECONDS: Final = 30.0

# VACUUM removes no row that the oldest snapshot of this database can still see. A prepared transaction holds a
# snapshot that no session shows. Without the role pg_read_all_stats only the user's own sessions are visible.
OLDEST_TRANSACTION: LiteralString = """
SELECT extract(epoch FROM clock_timestamp() - least(
    (SELECT min(xact_start) FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
       AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)),
    (SELECT min(prepared) FROM pg_prepared_xacts WHERE database = current_database())))::float8
"""

# Beside transactions of this database, replication slots and standbys with hot_standby_feedback hold back VACUUM.
# The session list of an application does not show them.
OLDEST_XMIN: LiteralString = """
SELECT coalesce(max(age(xmin)), 0)::float8
FROM (SELECT backend_xmin AS xmin FROM pg_stat_activity WHERE pid <> pg_backend_pid()
      UNION ALL SELECT xmin FROM pg_replication_slots
      UNION ALL SELECT catalog_xmin FROM pg_replication_slots
      UNION ALL SELECT transaction FROM pg_prepared_xacts) held
"""

TABLES: LiteralString = """
SELECT relname, n_dead_tup, pg_total_relation_size(relid)
FROM pg_stat_user_tables
WHERE schemaname = current_schema() AND relname = ANY (%s)
"""

HOT: Final = ["outbox", "outbox_events", "workers", "job_progress", "idempotency_keys"]
GROWING: Final = ["jobs", "job_results", "job_state_records"]


class Sampler:
    """Samples when asked, but for at most a twentieth of the time.

    `on_served` is told which presets the living workers run. Their metrics are shown from then on, even without jobs.
    """

    def __init__(self, url: str, on_served: Callable[[Collection[str]], None]) -> None:
        self._conn = PinnedConnection(url, name="sample")
        self._throttle = Throttle(most=MAX_SAMPLE_SECONDS)
        self._on_served = on_served
        self._served: set[str] = set()
        self._outbox = Figures(OUTBOX_ROWS)
        self._oldest = Figures(OUTBOX_OLDEST)
        self._workers = Figures(WORKERS_ALIVE)
        self._slots = Figures(SLOTS_ALIVE)
        self._seen = time.monotonic()
        SAMPLED_AT.set_to_current_time()

    async def sample(self) -> int:
        """The work of a periodic task; returns 0 rows. Raises DatabaseUnavailable.

        Figures older than STALE_SECONDS are forgotten: another relay may have newer ones.
        """
        if not self._throttle.due:
            return 0
        began = time.monotonic()
        try:
            await self._look()
        except (DatabaseUnavailable, Error):
            if began - self._seen > STALE_SECONDS:
                for figures in (self._outbox, self._oldest, self._workers, self._slots):
                    figures.forget()
            raise
        self._throttle.ended(began)
        self._seen = time.monotonic()
        SAMPLED_AT.set_to_current_time()
        return 0

    async def _look(self) -> None:
        async with self._conn.use() as conn:
            self._show(await queue_stats(conn))
            _show_events(await event_stats(conn))
            XMIN_AGE_SECONDS.set((await fetchall(conn, OLDEST_TRANSACTION))[0][0] or 0.0)
            XMIN_AGE_TRANSACTIONS.set((await fetchall(conn, OLDEST_XMIN))[0][0])
            for table, dead, size in await fetchall(conn, TABLES, [HOT + GROWING]):
                TABLE_BYTES.labels(table).set(size)
                if table in HOT:
                    DEAD_TUPLES.labels(table).set(dead)

    def _show(self, stats: QueueStats) -> None:
        served = [name for name, queue in stats.queues.items() if queue.workers]
        self._served.update(served)
        self._on_served(served)
        queues = dict.fromkeys(self._served, Queue()) | stats.queues
        self._outbox.show(
            {
                (name, status): queue.jobs.get(status, 0)
                for name, queue in queues.items()
                for status in OutboxStatus
            }
        )
        self._workers.show({(name,): queue.workers for name, queue in queues.items()})
        self._slots.show({(name,): queue.slots for name, queue in queues.items()})
        now = time.time()
        self._oldest.show({(name,): now - queue.age_seconds for name, queue in queues.items()})

    async def aclose(self) -> None:
        await self._conn.aclose()


def _show_events(topics: Mapping[str, EventStats]) -> None:
    for topic, events in topics.items():
        EVENTS_ROWS.labels(topic, "pending").set(events.pending)
        EVENTS_ROWS.labels(topic, "set_back").set(events.set_back)
        EVENTS_ROWS.labels(topic, "quarantined").set(events.quarantined)
        EVENTS_OLDEST.labels(topic).set(time.time() - events.age_seconds)
