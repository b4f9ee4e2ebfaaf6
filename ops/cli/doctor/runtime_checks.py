"""Checks of `outrider doctor` on a valid schema: relays, workers, the flow of jobs, publishing and rights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final, LiteralString

from engine.errors import SchemaMismatch
from engine.queries.queue_stats import OVERDUE_COUNTED, overdue, queue_stats
from engine.settings import Settings
from engine.storage.connections import Connection
from engine.storage.statements import fetchall
from engine.tables.relay_status import SILENT_SECONDS, ReportedStatus, reported
from migrations import rights
from ops.cli.doctor.result import CheckFailed, CheckResult, checked
from ops.cli.output import cell, span
from relay.maintenance.vacuum import ANALYZED

STUCK_SECONDS: Final = 120.0
"""How long a due job may wait for a worker."""

ANY_JOB: LiteralString = "SELECT EXISTS (SELECT FROM jobs)"

# The owner of a table or of the database may VACUUM and ANALYZE it. From PostgreSQL 17 on, the right can be granted.
KEPT_BY_OTHERS: LiteralString = """
SELECT c.relname
FROM unnest(%s::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name)
WHERE NOT pg_has_role(c.relowner, 'USAGE')
  AND NOT (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database())
  AND NOT CASE WHEN current_setting('server_version_num')::int >= 170000
               THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE false END
ORDER BY c.relname
"""
SEES_ALL: LiteralString = "SELECT pg_has_role('pg_read_all_stats', 'USAGE'), current_user"


async def examine(conn: Connection, settings: Settings) -> AsyncIterator[CheckResult]:
    yield await checked("relay", lambda: _relay(conn))
    yield await checked("workers", lambda: _workers(conn))
    yield await checked("flow", lambda: _flow(conn))
    if settings.transport == "pubsub":
        yield await checked("publishing", lambda: _publishing(conn))
    yield await checked("rights", lambda: _rights(conn))


async def _relay(conn: Connection) -> str:
    statuses = await reported(conn)
    if failing := [each for each in statuses if each.live and each.state == "failing"]:
        raise CheckFailed(
            "; ".join(f"maintenance of {_since(each)}" for each in failing),
            "fix the error in the message: until then due jobs and jobs of dead workers may not start",
        )
    if live := _live(statuses):
        return f"{len(live)} reported within {SILENT_SECONDS:.0f} s: {', '.join(live)}"
    heard = max((each.heard_at for each in statuses), default=None)
    if not heard and await fetchall(conn, ANY_JOB) == [(False,)]:
        return "no relay has reported, and there are no jobs"
    raise CheckFailed(
        f"no relay has reported{f' since {cell(heard)}' if heard else ''}",
        "run `outrider relay`: without a relay no job is promoted, and no lease of a dead worker lapses",
    )


async def _workers(conn: Connection) -> str:
    stats = await queue_stats(conn)
    presets = sorted(preset for preset, queue in stats.queues.items() if queue.workers)
    alive = f"{stats.workers} alive with {stats.slots} slots"
    alive += f" and the presets {', '.join(presets)}" if presets else ""
    without = {preset: queue for preset, queue in sorted(stats.queues.items()) if not queue.workers}
    due = {preset: queue.due for preset, queue in without.items() if queue.due}
    if due:
        raise CheckFailed(
            f"no live worker runs the presets of due jobs: {_numbered(due)}; {alive}",
            "run `outrider worker` with the modules of these presets in OUTRIDER_PIPELINES, or cancel the jobs",
        )
    later = {preset: queue.later for preset, queue in without.items() if queue.later}
    if stats.workers and later:
        return f"{alive}; no live worker runs the presets of jobs due later: {_numbered(later)}"
    return alive if stats.workers else "no worker is alive, and no job is due"


async def _flow(conn: Connection) -> str:
    late = await overdue(conn)
    if late.jobs:
        most = "at least " if late.jobs == OVERDUE_COUNTED else ""
        raise CheckFailed(
            f"{most}{late.jobs} waiting jobs are overdue, the first by {span(late.seconds)}",
            "check that `outrider relay` runs, and look for `maintenance.failed` in its log",
        )
    queues = (await queue_stats(conn)).queues
    age, preset = max(
        ((queue.age_seconds, name) for name, queue in queues.items() if queue.due), default=(0.0, "")
    )
    if not preset:
        return "no job is due"
    found = (
        f"the oldest due job that no worker has claimed, of the preset {preset}, has waited for {span(age)}"
    )
    if age > STUCK_SECONDS:
        raise CheckFailed(
            found,
            "add workers if all are busy; else run `outrider explain` on a job of `outrider jobs list`",
        )
    return found


async def _publishing(conn: Connection) -> str:
    """Check the live relays' reports on their topics."""
    statuses = await reported(conn)
    facts = [each for each in statuses if each.live and each.topic != "maintenance"]
    faults = [each for each in facts if each.state != "publishing"]
    if faults:
        by_hand = any(each.state == "misconfigured" for each in faults)
        raise CheckFailed(
            "; ".join(f"{each.topic}: the breaker of {_since(each)}" for each in faults),
            "run `outrider provision`, or grant the relay's account the missing right"
            if by_hand
            else "check that Pub/Sub can be reached: until then workers look for jobs in the outbox themselves",
        )
    if facts:
        return f"{', '.join(_live(facts))} can publish to every topic"
    if _live(statuses):
        raise CheckFailed("no live relay publishes", "run the relays with OUTRIDER_TRANSPORT=pubsub too")
    return "no relay is alive"


async def _rights(conn: Connection) -> str:
    """Check that the role may run a process. Rights without which maintenance is slower or blind are reported."""
    able = [process for process in rights.PROCESSES if await _may_run(conn, process)]
    if not able:
        await rights.check(conn, rights.PROCESSES)
    others = [name for (name,) in await fetchall(conn, KEPT_BY_OTHERS, [ANALYZED])]
    [(sees_all, role)] = await fetchall(conn, SEES_ALL)
    keeps = (
        f"may not VACUUM and ANALYZE {', '.join(others)} (make the role their owner)"
        if others
        else "may VACUUM and ANALYZE"
    )
    sees = (
        "sees every session" if sees_all else "sees only its own sessions (grant the role pg_read_all_stats)"
    )
    return f"{role} may run {', '.join(able)}, {keeps}, and {sees}"


async def _may_run(conn: Connection, process: str) -> bool:
    try:
        await rights.check(conn, [process])
    except SchemaMismatch:
        return False
    return True


def _numbered(jobs: Mapping[str, int]) -> str:
    return ", ".join(f"{preset} ({number})" for preset, number in jobs.items())


def _live(statuses: Iterable[ReportedStatus]) -> list[str]:
    return sorted({each.relay for each in statuses if each.live})


def _since(fact: ReportedStatus) -> str:
    how = "has been failing" if fact.state == "failing" else "has been open"
    return f"{fact.relay} {how} since {cell(fact.since)} ({fact.detail})"
