"""Writes the rows of outcomes: the results and releases of one group share a transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection

from engine.moves import Ending, Release, finish, release
from engine.moves.finish import Recorded
from engine.telemetry.metrics import BATCH_ROWS, BATCH_SECONDS

ROWS: Final = BATCH_ROWS.labels("record")
SECONDS: Final = BATCH_SECONDS.labels("record")
ROW_BYTES: Final = 200
"""Weight of a row in a group, without its text."""

Row = Ending | Release


async def write(
    conn: AsyncConnection[Any], worker_id: int, rows: Sequence[Row], *, publish_results: bool
) -> Recorded:
    """Write all of `rows`, or none if this raises: the batcher then splits the group and writes the parts.

    Joins the caller's transaction if there is one.
    """
    began = time.perf_counter()
    endings = [row for row in rows if isinstance(row, Ending)]
    releases = [row for row in rows if isinstance(row, Release)]
    async with conn.transaction() if endings and releases else nullcontext():
        done = await finish(conn, worker_id, endings, publish_results=publish_results) if endings else {}
        if releases:
            done |= await release(conn, worker_id, releases, publish_results=publish_results)
    ROWS.observe(len(rows))
    SECONDS.observe(time.perf_counter() - began)
    return done


def key_of(row: Row) -> tuple[UUID, int]:
    return row.job_id, row.attempt


def size_of(row: Row) -> int:
    """Roughly the row's size in bytes."""
    return ROW_BYTES + len((row.output if isinstance(row, Ending) else row.error) or "")
