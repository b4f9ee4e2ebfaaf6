"""What `outrider doctor` says of what runs on a sound schema: who lives, whether jobs move, what the role may do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final, LiteralString

from engine.queries.queue_stats import OVERDUE_COUNTED, overdue, queue_stats
from engine.settings import Settings
from engine.storage.connections import Connection
from engine.storage.statements import fetchall
from engine.tables.relay_status import SILENT_SECONDS, ReportedStatus, reported
from ops.cli.doctor.result import CheckFailed, CheckResult, checked
from ops.cli.output import cell, span
from relay.maintenance.vacuum import ANALYZED

STUCK_SECONDS: Final = 120.0
"""How long a due job may wait for a worker."""

ANY_JOB: LiteralString = "SELECT EXISTS (SELECT FROM jobs)"

# Whoever owns a table, or the database, may VACUUM and ANALYZE it; from PostgreSQL 17 on that can be granted too.
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
            "fix what the message names: meanwhile jobs may be neither promoted nor taken back",
        )
    if live := _live(statuses):
        return f"{len(live)} heard of within {SILENT_SECONDS:.0f} s: {', '.join(live)}"
    heard = max((each.heard_at for each in statuses), default=None)
    if not heard and await fetchall(conn, ANY_JOB) == [(False,)]:
        return "none has been heard of, and there are no jobs"
    raise CheckFailed(
        f"none has been heard of{f' since {cell(heard)}' if heard else ''}",
        "run `outrider relay`: without one nothing is promoted or taken back",
    )


async def _workers(conn: Connection) -> str:
    stats = await queue_stats(conn)
    presets = sorted(preset for preset, queue in stats.queues.items() if queue.workers)
    alive = f"{stats.workers} alive with {stats.slots} slots"
    alive += f" and the presets {', '.join(presets)}" if presets else ""
    if stranded := [
        f"{preset} ({q.due})" for preset, q in sorted(stats.queues.items()) if q.due and not q.workers
    ]:
        raise CheckFailed(
            f"jobs are due of presets that no live worker has: {', '.join(stranded)}; {alive}",
            "run `outrider worker`, with OUTRIDER_PIPELINES naming the modules of these presets",
        )
    return alive if stats.workers else "none alive, and no job is due"


async def _flow(conn: Connection) -> str:
    late = await overdue(conn)
    if late.jobs:
        most = "at least " if late.jobs == OVERDUE_COUNTED else ""
        raise CheckFailed(
            f"{most}{late.jobs} waiting jobs are overdue, the first by {span(late.seconds)}",
            "see that `outrider relay` runs, and what its log says of `maintenance.failed`",
        )
    queues = (await queue_stats(conn)).queues
    age, preset = max(
        ((queue.age_seconds, name) for name, queue in queues.items() if queue.due), default=(0.0, "")
    )
    if not preset:
        return "no job is due"
    found = f"the oldest job that is due and nobody's, of the preset {preset}, has waited for {span(age)}"
    if age > STUCK_SECONDS:
        raise CheckFailed(
            found,
            "add workers if all are busy; else ask `outrider explain` why one of `outrider jobs list` waits",
        )
    return found


async def _publishing(conn: Connection) -> str:
    """What live relays say of their topics."""
    statuses = await reported(conn)
    facts = [each for each in statuses if each.live and each.topic != "maintenance"]
    faults = [each for each in facts if each.state != "publishing"]
    if faults:
        by_hand = any(each.state == "misconfigured" for each in faults)
        raise CheckFailed(
            "; ".join(f"{each.topic}: the breaker of {_since(each)}" for each in faults),
            "run `outrider provision`, or give the relay's account the right that it lacks"
            if by_hand
            else "see that Pub/Sub can be reached: until then workers look for jobs in the outbox themselves",
        )
    if facts:
        return f"{', '.join(_live(facts))} can publish to every topic"
    if _live(statuses):
        raise CheckFailed("no live relay publishes", "run the relays, too, with OUTRIDER_TRANSPORT=pubsub")
    return "no relay is there to ask"


async def _rights(conn: Connection) -> str:
    """What the role lacks makes maintenance slower or blind. It breaks nothing, so it is no failure."""
    others = [name for (name,) in await fetchall(conn, KEPT_BY_OTHERS, [ANALYZED])]
    [(sees_all, role)] = await fetchall(conn, SEES_ALL)
    keeps = (
        f"may not VACUUM and ANALYZE {', '.join(others)} (make it their owner)"
        if others
        else "may VACUUM and ANALYZE"
    )
    sees = "sees every session" if sees_all else "sees its own sessions alone (grant it pg_read_all_stats)"
    return f"{role} {keeps}, and {sees}"


def _live(statuses: Iterable[ReportedStatus]) -> list[str]:
    return sorted({each.relay for each in statuses if each.live})


def _since(fact: ReportedStatus) -> str:
    how = "has been failing" if fact.state == "failing" else "has been open"
    return f"{fact.relay} {how} since {cell(fact.since)} ({fact.detail})"
