"""The relay_status table: the state of each relay's maintenance, and of each topic that the relay publishes to.

Each relay renews its rows every few seconds (relay/status.py). `explain`, `doctor` and `outbox status` read the rows
to report why a job has not started and whether any relay runs.
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
"""A relay that has not renewed its rows for this long is considered gone."""

Subject = Literal["jobs", "results", "dead-letters", "maintenance"]
"""The subject of a status: a topic, or maintenance, which every relay reports with both transports."""
State = Literal["publishing", "passing", "misconfigured", "maintaining", "failing"]
"""A topic is `publishing`, or, while its breaker is open, `passing` or `misconfigured` by the kind of fault.
Maintenance is `maintaining` or `failing`."""

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
    """The state of one topic or of maintenance, its age in `seconds`, and in `detail` the error of a failing state."""

    topic: Subject
    state: State
    seconds: float
    detail: str | None


@dataclass(frozen=True, slots=True)
class ReportedStatus:
    """A row of the table. `live`: the relay has renewed the row within SILENT_SECONDS."""

    relay: str
    topic: Subject
    state: State
    since: datetime
    detail: str | None
    heard_at: datetime
    live: bool


async def report(conn: AsyncConnection[Any], relay: str, statuses: Sequence[RelayStatus]) -> None:
    """Write the statuses of `relay`. The rows outlive the relay: their age shows since when the relay is gone."""
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
    """Every row. A running relay prunes the rows of other relays once they have been gone for a minute."""
    async with conn.cursor(row_factory=class_row(ReportedStatus)) as cursor:
        await cursor.execute(REPORTED, [SILENT_SECONDS])
        return await cursor.fetchall()
