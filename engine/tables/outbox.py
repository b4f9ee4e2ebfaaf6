"""The outbox table: one row for each unfinished job. The row's status says where the job stands.

| status    | the job                                                               | dated by       |
|-----------|-----------------------------------------------------------------------|----------------|
| waiting   | is due later: a delay, a retry or a snooze                            | `run_at`       |
| ready     | may be claimed, in the order of `position` within its lane            | `ready_at`     |
| published | may be claimed, and its wake-up was published through Pub/Sub         | `published_at` |
| leased    | belongs to one worker; `worker_id` is NULL in every other status      | `claimed_at`   |

The statements that change a row are the moves (engine/moves).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection

from engine.limits import PRIORITY
from engine.storage.statements import fetchall


class OutboxStatus(StrEnum):
    """The values of PostgreSQL's type outbox_status."""

    WAITING = "waiting"
    READY = "ready"
    PUBLISHED = "published"
    LEASED = "leased"


PRIORITIES: Final = tuple(range(PRIORITY.low, PRIORITY.high + 1))

STATE_OF: LiteralString = "(CASE WHEN o.status = 'leased' THEN 'PROCESSING' ELSE 'PENDING' END)::job_state"
"""The state of a job, by its outbox row `o`."""

# A loose index scan: one step for each preset, however many rows the preset has.
_STEP: LiteralString = """
    UNION ALL
    SELECT (SELECT o.preset FROM outbox o WHERE o.status = 'ready' AND o.preset > k.preset ORDER BY o.preset LIMIT 1)
    FROM known k
    WHERE k.preset IS NOT NULL
)"""
READY_PRESETS: LiteralString = (
    "known(preset) AS ((SELECT preset FROM outbox WHERE status = 'ready' ORDER BY preset LIMIT 1)" + _STEP  # noqa: S608
)
"""A recursive CTE `known`: the presets of ready jobs, and a NULL at the end."""

# The limit ends the recursion, because each step is made only when its row is asked for.
PRESETS: LiteralString = (
    "WITH RECURSIVE known(preset) AS ("  # noqa: S608 - constants alone
    "(SELECT preset FROM outbox WHERE status = 'ready' AND preset > %(after)s::text ORDER BY preset LIMIT 1)"
    + _STEP
    + "SELECT preset FROM known WHERE preset IS NOT NULL LIMIT %(limit)s"
)


class Lane(NamedTuple):
    """The ready jobs of one preset and priority, in the order of `position`. A scan starts above the position `low`."""

    preset: str
    priority: int
    low: int = 0


def lanes_of(presets: Sequence[str], marks: Mapping[Any, int]) -> list[Lane]:
    """Every lane of `presets`, most urgent first. `marks` maps (preset, priority) to the position to start above."""
    return [
        Lane(preset, priority, marks.get((preset, priority), 0))
        for priority in PRIORITIES
        for preset in presets
    ]


async def ready_presets(conn: AsyncConnection[Any], *, after: str, limit: int) -> list[str]:
    """The first `limit` presets after `after` that have ready jobs, in the database's order."""
    return [preset for (preset,) in await fetchall(conn, PRESETS, {"after": after, "limit": limit})]
