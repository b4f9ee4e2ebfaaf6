"""What `outrider doctor` says of what runs on a sound schema: who lives, whether jobs move, what the role may do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final, LiteralString

from engine import backlog, relays
from engine.db import Connection, fetchall
from engine.demand import look
from engine.maintenance import PLANNED
from engine.relays import SILENT_SECONDS, Told
from engine.settings import Settings
from ops.cli.output import cell, span
from ops.cli.verdict import Ill, Verdict, judged

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


async def examine(conn: Connection, settings: Settings) -> AsyncIterator[Verdict]:
    yield await judged("relay", lambda: _relay(conn))
    yield await judged("workers", lambda: _workers(conn))
    yield await judged("flow", lambda: _flow(conn))
    if settings.transport == "pubsub":
        yield await judged("publishing", lambda: _publishing(conn))
    yield await judged("rights", lambda: _rights(conn))


async def _relay(conn: Connection) -> str:
    told = await relays.told(conn)
    if failing := [each for each in told if each.live and each.state == "failing"]:
        raise Ill(
            "; ".join(f"maintenance of {_since(each)}" for each in failing),
            "mend what the message names: meanwhile jobs may be neither promoted nor taken back",
        )
    if live := _live(told):
        return f"{len(live)} heard of within {SILENT_SECONDS:.0f} s: {', '.join(live)}"
    heard = max((each.heard_at for each in told), default=None)
    if not heard and await fetchall(conn, ANY_JOB) == [(False,)]:
        return "none has been heard of, and there are no jobs"
    raise Ill(
        f"none has been heard of{f' since {cell(heard)}' if heard else ''}",
        "run `outrider relay`: without one nothing is promoted or taken back",
    )


async def _workers(conn: Connection) -> str:
    demand = await look(conn)
    presets = sorted(preset for preset, queue in demand.queues.items() if queue.workers)
    alive = f"{demand.workers} alive with {demand.slots} slots"
    alive += f" and the presets {', '.join(presets)}" if presets else ""
    if stranded := [
        f"{preset} ({q.due})" for preset, q in sorted(demand.queues.items()) if q.due and not q.workers
    ]:
        raise Ill(
            f"jobs are due of presets that no live worker has: {', '.join(stranded)}; {alive}",
            "run `outrider worker`, with OUTRIDER_PIPELINES naming the modules of these presets",
        )
    return alive if demand.workers else "none alive, and no job is due"


async def _flow(conn: Connection) -> str:
    late = await backlog.overdue(conn)
    if late.jobs:
        most = "at least " if late.jobs == backlog.OVERDUE_COUNTED else ""
        raise Ill(
            f"{most}{late.jobs} waiting jobs are overdue, the first by {span(late.seconds)}",
            "see that `outrider relay` runs, and what its log says of `chore.failed`",
        )
    queues = (await look(conn)).queues
    age, preset = max(
        ((queue.age_seconds, name) for name, queue in queues.items() if queue.due), default=(0.0, "")
    )
    if not preset:
        return "no job is due"
    found = f"the oldest job that is due and nobody's, of the preset {preset}, has waited for {span(age)}"
    if age > STUCK_SECONDS:
        raise Ill(
            found,
            "add workers if all are busy; else ask `outrider explain` why one of `outrider jobs list` waits",
        )
    return found


async def _publishing(conn: Connection) -> str:
    """What live relays say of their topics."""
    told = await relays.told(conn)
    facts = [each for each in told if each.live and each.topic != "maintenance"]
    faults = [each for each in facts if each.state != "publishing"]
    if faults:
        by_hand = any(each.state == "misconfigured" for each in faults)
        raise Ill(
            "; ".join(f"{each.topic}: the breaker of {_since(each)}" for each in faults),
            "run `outrider provision`, or give the relay's account the right that it lacks"
            if by_hand
            else "see that Pub/Sub can be reached: until then workers look for jobs in the outbox themselves",
        )
    if facts:
        return f"{', '.join(_live(facts))} can publish to every topic"
    if _live(told):
        raise Ill("no live relay publishes", "run the relays, too, with OUTRIDER_TRANSPORT=pubsub")
    return "no relay is there to ask"


async def _rights(conn: Connection) -> str:
    """What is lacking makes upkeep slower or blind, but breaks nothing: it is no failure."""
    others = [name for (name,) in await fetchall(conn, KEPT_BY_OTHERS, [PLANNED])]
    [(sees_all, role)] = await fetchall(conn, SEES_ALL)
    keeps = (
        f"may not VACUUM and ANALYZE {', '.join(others)} (make it their owner)"
        if others
        else "may VACUUM and ANALYZE"
    )
    sees = "sees every session" if sees_all else "sees its own sessions alone (grant it pg_read_all_stats)"
    return f"{role} {keeps}, and {sees}"


def _live(told: Iterable[Told]) -> list[str]:
    return sorted({each.relay for each in told if each.live})


def _since(fact: Told) -> str:
    how = "has been failing" if fact.state == "failing" else "has been open"
    return f"{fact.relay} {how} since {cell(fact.since)} ({fact.detail})"
