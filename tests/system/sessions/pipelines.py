"""A pipeline whose effects leave a row in a table that only the application knows."""

from __future__ import annotations

from typing import Any

from engine import Completed, pipeline


@pipeline("ledger", backoff=0, max_attempts=1)
async def ledger(job: Any, _run: Any) -> Completed:
    async def effects(conn: Any) -> None:
        await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, job.content])

    return Completed(job.content, effects=effects)


pipelines = [ledger]
