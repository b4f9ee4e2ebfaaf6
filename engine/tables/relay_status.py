"""The relay_status table: how each relay's maintenance fares, and each topic that it publishes to.

Each relay renews its rows every few seconds (relay/status.py). `explain`, `doctor` and `outbox status` read them, to
tell why a job has not started and whether anything runs at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.storage.literals import array

SILENT_SECONDS: Final = 20.0
"""A relay that has not renewed its rows for so long is taken to be gone."""

Subject = Literal["jobs", "results", "dead-letters", "maintenance"]
"""What a status is of: a topic; or maintenance, which every relay reports in both transports."""
State = Literal["publishing", "passing", "misconfigured", "maintaining", "failing"]
"""Of a topic: `passing` and `misconfigured` are the kinds of fault for which its breaker is open. Of maintenance: the
last two."""

REPORT: LiteralString = """
INSERT INTO relay_status AS known (relay, topic, state, since, detail)
SELECT %(relay)s, topic, state, clock_timestamp() - seconds * interval '1 second', detail
FROM unnest(%(topics)s::text[], %(states)s::text[], %(seconds)s::float8[], %(details)s::text[])
     AS x(topic, state, seconds, detail)
ORDER BY topic
ON CONFLICT (relay, topic) DO UPDATE
SET state = excluded.state, since = excluded.since, detail = excluded.detail, updated_at = clock_timestamp()
"""

REPORTED: LiteralString = """
SELECT relay, topic, state, since, detail, updated_at AS heard_at,
       updated_at > clock_timestamp() - %s * interval '1 second' AS live
FROM relay_status
ORDER BY relay, topic
"""


class RelayStatus(NamedTuple):
    """How one topic or maintenance fares, for how many seconds already, and the error for which it fails."""

    topic: Subject
    state: State
    seconds: float
    detail: str | None


@dataclass(frozen=True, slots=True)
class ReportedStatus:
    """A row of the table. `live`: the relay has renewed it within SILENT_SECONDS."""

    relay: str
    topic: Subject
    state: State
    since: datetime
    detail: str | None
    heard_at: datetime
    live: bool


async def report(conn: AsyncConnection[Any], relay: str, statuses: Sequence[RelayStatus]) -> None:
    """Write how `relay` fares. Its rows stay when it is gone: their age says since when."""
    await conn.execute(
        REPORT,
        {
            "relay": relay,
            "topics": array(each.topic for each in statuses),
            "states": array(each.state for each in statuses),
            "seconds": array(each.seconds for each in statuses),
            "details": array(each.detail for each in statuses),
        },
    )


async def reported(conn: AsyncConnection[Any]) -> list[ReportedStatus]:
    """Every row. While a relay runs, those of relays that are gone are pruned after a minute."""
    async with conn.cursor(row_factory=class_row(ReportedStatus)) as cursor:
        await cursor.execute(REPORTED, [SILENT_SECONDS])
        return await cursor.fetchall()
