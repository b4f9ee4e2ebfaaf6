"""What operators do with events that are not published: discard them, or have them published again.

Each is one statement, which writes what it did to operator_actions. An event counts as held if it is quarantined or set
back; any other is left alone, because a relay may have it on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection

from engine.storage.literals import bare_array
from engine.storage.statements import fetchall
from engine.tables.events import IS_SET_BACK

_HELD: LiteralString = """
WITH held AS (
    SELECT id, jsonb_build_object(
               'topic', topic, 'message_id', attributes -> 'message_id', 'job_id', attributes -> 'job_id',
               'bytes', octet_length(payload), 'sha256', encode(sha256(payload), 'hex'), 'created_at', created_at,
               'quarantined_at', quarantined_at, 'failures', failures, 'reason', reason) AS facts
    FROM outbox_events
    WHERE id = ANY (%(ids)s::bigint[]) AND (quarantined_at IS NOT NULL OR {set_back})
    ORDER BY id
    FOR UPDATE
)""".replace("{set_back}", IS_SET_BACK)

DISCARD: LiteralString = """{held}, gone AS (
    DELETE FROM outbox_events WHERE id IN (SELECT id FROM held)
), noted AS (
    INSERT INTO operator_actions (actor, action, target_kind, target, reason, before)
    SELECT %(actor)s, 'outbox.discard', 'event', id, %(reason)s, facts FROM held
)
SELECT id FROM held ORDER BY id
""".replace("{held}", _HELD)

REPUBLISH: LiteralString = """{held}, freed AS (
    UPDATE outbox_events SET quarantined_at = NULL, publish_until = NULL, failures = 0, reason = NULL
    WHERE id IN (SELECT id FROM held)
), noted AS (
    INSERT INTO operator_actions (actor, action, target_kind, target, reason, before, after)
    SELECT %(actor)s, 'outbox.republish', 'event', id, %(reason)s, facts,
           facts || '{"quarantined_at": null, "failures": 0, "reason": null}'
    FROM held
)
SELECT id FROM held ORDER BY id
""".replace("{held}", _HELD)


async def discard(conn: AsyncConnection[Any], ids: Sequence[int], *, actor: str, reason: str) -> list[int]:
    """Delete held events, and return their ids. What they announced stays in the jobs' results."""
    return await _act(conn, DISCARD, ids, actor, reason)


async def republish(conn: AsyncConnection[Any], ids: Sequence[int], *, actor: str, reason: str) -> list[int]:
    """Let held events be published again, as new ones, and return their ids."""
    return await _act(conn, REPUBLISH, ids, actor, reason)


async def _act(
    conn: AsyncConnection[Any], statement: LiteralString, ids: Sequence[int], actor: str, reason: str
) -> list[int]:
    rows = await fetchall(conn, statement, {"ids": bare_array(ids), "actor": actor, "reason": reason})
    return [id_ for (id_,) in rows]
