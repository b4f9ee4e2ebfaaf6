"""The chores that keep the engine true and quick: promote, lapse, prune, vacuum, analyze, sample.

Several processes may run them at once: row locks share the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, LiteralString

import structlog
from psycopg import AsyncConnection, Error, errors, sql

from engine.chores import Chore, Faults
from engine.db import Connection, HotConnection, Pool, fetchall, lent
from engine.errors import DatabaseUnavailable
from engine.metrics import (
    ATTEMPTS,
    DEAD_LETTERS,
    JOBS_FINISHED,
    MAINTENANCE_CYCLED_AT,
    MAINTENANCE_ERRORS,
    MAINTENANCE_ROWS,
)
from engine.model import JobState, first_id_of
from engine.moves import lapse, promote
from engine.moves.upkeep import Lapsed
from engine.process import pause
from engine.relays import tell_forever
from engine.sampler import Sampler

BATCH: Final = 1000
DEAD_ROWS: Final = 10_000
PLANNED: Final = ["jobs", "outbox", "outbox_events", "job_results", "job_state_records", "job_progress"]
PROMOTE_SECONDS: Final = 0.2
LAPSE_SECONDS: Final = 10.0
SAMPLE_SECONDS: Final = 5.0
CHORE_SECONDS: Final = 60.0
SHOWN: Final = 10
"""How many jobs of a dead worker a log line names."""

log = structlog.get_logger()

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

# While no relay runs nobody prunes: then they say since when none has been heard of.
PRUNE_FACTS: LiteralString = """
DELETE FROM relay_facts
WHERE (relay, topic) IN (
    SELECT relay, topic FROM relay_facts WHERE updated_at < now() - interval '1 minute' LIMIT %s)
"""

# Ids are in the order of creation, and what finished long ago was created before that: the bound ends the scan of
# the primary key where younger jobs begin.
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

# A table that was empty at its last VACUUM or ANALYZE is planned for as if it still were, however it has grown: plans
# then read all of it for each row. autovacuum wakes once a minute; ANALYZE also has every session plan anew.
OUTGROWN: LiteralString = """
SELECT s.relname FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE schemaname = current_schema() AND s.relname = ANY (%s) AND n_live_tup > 500 + 4 * greatest(reltuples, 0)
"""

DEAD: LiteralString = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'outbox'::regclass"
VACUUM: LiteralString = "VACUUM (SKIP_LOCKED, TRUNCATE false) outbox"
WARNING: Final = "01000"


class Maintenance:
    """Runs every chore until `stop`. `on_ready` is called when rows became ready; `announce` is of results.

    `presets` are those whose figures are shown from the start, and whether or not they have jobs.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        *,
        lease_seconds: float,
        retention_days: int,
        on_ready: Callable[[], None],
        presets: Iterable[str] = (),
        announce: bool = False,
    ) -> None:
        presets = tuple(presets)
        self._url = url
        self._pool = pool
        self._lease_seconds = lease_seconds
        self._retention_days = retention_days
        self._on_ready = on_ready
        self._announce = announce
        # Effects may hold the whole pool; these two must go on, for nothing else brings their jobs back.
        self._promoting = HotConnection(url, name="promote")
        self._lapsing = HotConnection(url, name="lapse")
        self.sampler = Sampler(url, presets)
        self._lapsing_since: tuple[Connection, float] | None = None
        self._vacuum_after = 0.0
        self._cycled = time.monotonic()
        self._faults = Faults()
        self.chores = [
            Chore("prune_progress", 30.0, _statement(PRUNE_PROGRESS)),
            Chore("prune_facts", 60.0, _statement(PRUNE_FACTS)),
            Chore("prune_keys", 60.0, _statement(PRUNE_KEYS)),
            Chore("vacuum", 2.0, self._vacuum),
            Chore("analyze", 2.0, _analyze),
        ]
        if retention_days:
            self.chores.append(Chore("prune_jobs", 60.0, self._prune_jobs))
        _show_nothing_yet(presets, ("promote", "lapse", "sample", *(chore.name for chore in self.chores)))

    async def ready(self) -> None:
        """A readiness check: raises when due jobs have not been looked at lately."""
        behind = time.monotonic() - self._cycled
        if behind > self._lease_seconds:
            raise DatabaseUnavailable(f"nothing was promoted for {behind:.0f} s")

    async def run(self, stop: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(tell_forever(self._url, lambda: [self._faults.standing]))
                async with asyncio.TaskGroup() as chores:
                    chores.create_task(self._every(stop, "promote", PROMOTE_SECONDS, self._promote))
                    chores.create_task(
                        self._every(stop, "lapse", min(self._lease_seconds / 6, LAPSE_SECONDS), self._lapse)
                    )
                    chores.create_task(self._every(stop, "sample", SAMPLE_SECONDS, self.sampler.sample))
                    for chore in self.chores:
                        chores.create_task(self._every(stop, chore.name, chore.period, self._lent(chore)))
                telling.cancel()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._promoting.aclose()
        await self._lapsing.aclose()
        await self.sampler.aclose()

    async def _every(
        self, stop: asyncio.Event, name: str, period: float, work: Callable[[], Awaitable[int]]
    ) -> None:
        while not stop.is_set():
            try:
                rows = await work()
            except (DatabaseUnavailable, Error) as error:
                MAINTENANCE_ERRORS.labels(name).inc()
                self._faults.failed(name, error)
                rows = 0
            else:
                self._faults.did(name)
                MAINTENANCE_CYCLED_AT.labels(name).set_to_current_time()
            MAINTENANCE_ROWS.labels(name).inc(rows)
            if rows < BATCH:
                await pause(stop, period)

    def _lent(self, chore: Chore) -> Callable[[], Awaitable[int]]:
        async def work() -> int:
            async with lent(self._pool, CHORE_SECONDS) as conn:
                return await chore.work(conn)

        return work

    async def _promote(self) -> int:
        async with self._promoting.use() as conn:
            rows = await promote(conn, BATCH)
        self._cycled = time.monotonic()
        if rows:
            self._on_ready()
        return rows

    async def _lapse(self) -> int:
        """Take back what dead workers held; but not before this process itself has been connected for a lease.

        After an outage of the database every lease has expired, and the workers that will renew theirs in a
        moment must not be robbed.
        """
        async with self._lapsing.use() as conn:
            if self._lapsing_since is None or self._lapsing_since[0] is not conn:
                self._lapsing_since = (conn, time.monotonic())
            if time.monotonic() - self._lapsing_since[1] < self._lease_seconds:
                await conn.execute("SELECT 1")
                return 0
            lapsed = await lapse(conn, BATCH, announce=self._announce)
        for each in lapsed:
            _count(each)
        if lapsed:
            failed = sum(each.state is JobState.FAILED for each in lapsed)
            shown = [str(each.job_id) for each in lapsed[:SHOWN]]
            workers = sorted({each.worker for each in lapsed})
            log.warning("leases.lapsed", workers=workers, jobs=len(lapsed), failed=failed, job_ids=shown)
        if any(each.state is JobState.PENDING for each in lapsed):
            self._on_ready()
        return len(lapsed)

    async def _prune_jobs(self, conn: Connection) -> int:
        bound = first_id_of(
            time.time() - (self._retention_days - 1) * 86_400
        )  # a day of slack for other clocks
        return (
            await conn.execute(PRUNE_JOBS, {"days": self._retention_days, "limit": BATCH, "bound": bound})
        ).rowcount

    async def _vacuum(self, conn: Connection) -> int:
        """Clear the queue's head of dead rows: autovacuum wakes once a minute, and by then they triple its cost."""
        if time.monotonic() < self._vacuum_after or await _dead(conn) < DEAD_ROWS:
            return 0
        await _heeded(conn, VACUUM)
        # A held snapshot keeps the dead rows: then trying again at once is all cost.
        self._vacuum_after = time.monotonic() + (60.0 if await _dead(conn) >= DEAD_ROWS else 0.0)
        return 0


def _show_nothing_yet(presets: Iterable[str], chores: Iterable[str]) -> None:
    """Every counter of maintenance, at 0 before its first event."""
    for chore in chores:
        MAINTENANCE_CYCLED_AT.labels(chore).set_to_current_time()
        MAINTENANCE_ERRORS.labels(chore)
        MAINTENANCE_ROWS.labels(chore)
    for preset in presets:
        ATTEMPTS.labels(preset, "lost")
        DEAD_LETTERS.labels(preset, "lapsed")
        for state in (JobState.FAILED, JobState.CANCELLED):
            JOBS_FINISHED.labels(preset, state)


def _count(lapsed: Lapsed) -> None:
    ATTEMPTS.labels(lapsed.preset, "lost").inc()
    if lapsed.state.terminal:
        JOBS_FINISHED.labels(lapsed.preset, lapsed.state).inc()
    if lapsed.state is JobState.FAILED:
        DEAD_LETTERS.labels(lapsed.preset, "lapsed").inc()


def _statement(statement: LiteralString) -> Callable[[AsyncConnection[Any]], Awaitable[int]]:
    async def work(conn: AsyncConnection[Any]) -> int:
        return (await conn.execute(statement, [BATCH])).rowcount

    return work


async def _analyze(conn: Connection) -> int:
    """Tell the planner of tables that have outgrown what it knows of them."""
    for (table,) in await fetchall(conn, OUTGROWN, [PLANNED]):
        await _heeded(conn, sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    return 0


async def _heeded(conn: Connection, statement: LiteralString | sql.Composed) -> None:
    """Run VACUUM or ANALYZE. Raises InsufficientPrivilege where the server warns of that and does nothing."""
    warned: list[str] = []

    def heed(notice: errors.Diagnostic) -> None:
        if notice.sqlstate == WARNING:  # a table that is locked has a code of its own
            warned.append(notice.message_primary or "")

    conn.add_notice_handler(heed)
    try:
        await conn.execute(statement)
    finally:
        conn.remove_notice_handler(heed)
    if warned:
        raise errors.InsufficientPrivilege(warned[0])


async def _dead(conn: Connection) -> int:
    row = await (await conn.execute(DEAD)).fetchone()
    return int(row[0]) if row else 0
