"""The idempotency_keys table: the answer to each submission or redrive with a key, kept for a day.

The statement that enqueues or redrives the jobs also inserts the key (engine/moves/enqueue.py, redrive.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

import orjson
from psycopg import AsyncConnection

from engine.storage.literals import array
from engine.storage.statements import fetchall, fetchone

KEY_HOURS: Final = 24

KeyName = tuple[str, str, str]
"""Owner, route and key."""
Held = dict[KeyName, tuple[bytes, tuple[UUID, ...]]]
"""A held key → the fingerprint of its body, and the ids of its jobs."""

HELD: LiteralString = """
SELECT held.fingerprint, held.answer::text
FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS k(owner, route, key, no)
LEFT JOIN idempotency_keys held USING (owner, route, key)
ORDER BY k.no
"""
IS_HELD: LiteralString = """
SELECT FROM idempotency_keys WHERE (owner, route, key) = (%s, %s, %s) AND expires_at >= clock_timestamp()
"""


class IdempotencyKey(NamedTuple):
    """Identifies equal submissions. `fingerprint` is the SHA-256 of the body as JSON with sorted members."""

    owner: str
    route: str
    key: str
    fingerprint: bytes

    @property
    def name(self) -> KeyName:
        return (self.owner, self.route, self.key)


async def held_answers(conn: AsyncConnection[Any], names: Sequence[KeyName]) -> Held:
    """The stored answers of those `names` that are held."""
    if not names:
        return {}
    columns = [array(name[column] for name in names) for column in range(3)]
    rows = await fetchall(conn, HELD, columns)
    return {
        name: (bytes(fingerprint), tuple(UUID(text) for text in orjson.loads(answer)))
        for name, (fingerprint, answer) in zip(names, rows, strict=True)
        if fingerprint is not None
    }


async def is_held(conn: AsyncConnection[Any], name: KeyName) -> bool:
    """Whether an answer is stored under `name`, and has not expired."""
    return await fetchone(conn, IS_HELD, name) is not None
