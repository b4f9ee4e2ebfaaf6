"""The operator_actions table: what operators did by hand, to what, why, and what that changed. Append-only.

A row is written by the statement that acts, or in its transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

MAX_REASON: Final = 1000

LATEST: LiteralString = """
SELECT id, at, actor, role, action, target_kind, target, reason, before, after
FROM operator_actions
ORDER BY id DESC
LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class OperatorAction:
    """One action. `actor` is who the operator says to be, `role` who the database knows."""

    id: int
    at: datetime
    actor: str
    role: str
    action: str
    target_kind: str
    target: str
    reason: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


async def latest(conn: AsyncConnection[Any], limit: int) -> list[OperatorAction]:
    """The last `limit` actions, latest first."""
    async with conn.cursor(row_factory=class_row(OperatorAction)) as cursor:
        await cursor.execute(LATEST, [limit])
        return await cursor.fetchall()
