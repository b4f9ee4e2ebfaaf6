"""The relay_facts table: what each relay says of the topics that it publishes to, for those who explain a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection

from engine.db import array

TELL_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 20.0
"""A relay that has said nothing for so long is taken to be gone."""

Kind = Literal["jobs", "results", "dead-letters"]
State = Literal["publishing", "passing", "misconfigured"]
"""`passing` and `misconfigured` are the kinds of fault for which the breaker is open."""

TELL: LiteralString = """
INSERT INTO relay_facts AS told (relay, topic, state, since, detail)
SELECT %(relay)s, topic, state, clock_timestamp() - seconds * interval '1 second', detail
FROM unnest(%(topics)s::text[], %(states)s::text[], %(seconds)s::float8[], %(details)s::text[])
     AS x(topic, state, seconds, detail)
ORDER BY topic
ON CONFLICT (relay, topic) DO UPDATE
SET state = excluded.state, since = excluded.since, detail = excluded.detail, updated_at = clock_timestamp()
"""


class Standing(NamedTuple):
    """How one topic fares, for how many seconds already, and what the broker said when it failed."""

    topic: Kind
    state: State
    seconds: float
    detail: str | None


async def tell(conn: AsyncConnection[Any], relay: str, standings: Sequence[Standing]) -> None:
    """Write how the topics of `relay` stand. Its rows stay when it is gone: their age says since when."""
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
