"""The relay_facts table: what each relay says of its maintenance and of the topics that it publishes to.

Those read it who are asked why a job has not started, or whether anything runs at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection, Error
from psycopg.rows import class_row

from engine.db import HotConnection, array
from engine.errors import DatabaseUnavailable
from engine.process import process_name

TELL_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 20.0
"""A relay that has said nothing for so long is taken to be gone."""

Kind = Literal["jobs", "results", "dead-letters", "maintenance"]
"""What a fact is about: a topic, or `maintenance`, of which every relay tells in both transports."""
State = Literal["publishing", "passing", "misconfigured", "maintaining", "failing"]
"""Of a topic: `passing` and `misconfigured` are the kinds of fault for which its breaker is open. Of maintenance: the
last two."""

TELL: LiteralString = """
INSERT INTO relay_facts AS told (relay, topic, state, since, detail)
SELECT %(relay)s, topic, state, clock_timestamp() - seconds * interval '1 second', detail
FROM unnest(%(topics)s::text[], %(states)s::text[], %(seconds)s::float8[], %(details)s::text[])
     AS x(topic, state, seconds, detail)
ORDER BY topic
ON CONFLICT (relay, topic) DO UPDATE
SET state = excluded.state, since = excluded.since, detail = excluded.detail, updated_at = clock_timestamp()
"""

TOLD: LiteralString = """
SELECT relay, topic, state, since, detail, updated_at AS heard_at,
       updated_at > clock_timestamp() - %s * interval '1 second' AS live
FROM relay_facts
ORDER BY relay, topic
"""


class Standing(NamedTuple):
    """How one topic or maintenance fares, for how many seconds already, and what was said when it failed."""

    topic: Kind
    state: State
    seconds: float
    detail: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """A fact as it stands in the table. `live`: it was told within SILENT_SECONDS."""

    relay: str
    topic: Kind
    state: State
    since: datetime
    detail: str | None
    heard_at: datetime
    live: bool


async def tell(conn: AsyncConnection[Any], relay: str, standings: Sequence[Standing]) -> None:
    """Write how `relay` fares. Its rows stay when it is gone: their age says since when."""
    await conn.execute(
        TELL,
        {
            "relay": relay,
            "topics": array(each.topic for each in standings),
            "states": array(each.state for each in standings),
            "seconds": array(each.seconds for each in standings),
            "details": array(each.detail for each in standings),
        },
    )


async def tell_forever(url: str, standings: Callable[[], Sequence[Standing]]) -> None:
    """Tell every TELL_SECONDS, over a connection of its own, until cancelled."""
    telling = HotConnection(url, name="tell")
    try:
        while True:
            with suppress(DatabaseUnavailable, Error):  # the next round tells it
                async with telling.use() as conn:
                    await tell(conn, process_name(), standings())
            await asyncio.sleep(TELL_SECONDS)
    finally:
        await telling.aclose()


async def told(conn: AsyncConnection[Any]) -> list[Told]:
    """Every fact. While a relay runs, those of the ones that have gone are pruned after a minute."""
    async with conn.cursor(row_factory=class_row(Told)) as cursor:
        await cursor.execute(TOLD, [SILENT_SECONDS])
        return await cursor.fetchall()
