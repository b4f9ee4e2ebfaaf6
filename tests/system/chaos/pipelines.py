"""Pipelines of the chaos runs. Each start leaves a line in the file that CHAOS_LEDGER names, outside the database."""

from __future__ import annotations

import asyncio
import os
import random
from functools import cache
from typing import Any

from engine import Completed, Pipeline, pipeline

RUN_SECONDS = 0.04
LONG_SECONDS = 3.0
LONG_SHARE = 0.02
"""Of attempts that run so long, some are still at it when their worker is stopped, and others have their job."""


@cache
def ledger() -> int:
    return os.open(os.environ["CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@pipeline("entry", backoff=0)
async def entry(job: Any, run: Any) -> Completed:
    """A moment's work, or more; its effects are a row in `effects`, which has no key. It gives back the content."""
    os.write(ledger(), f"{job.id} {run.attempt}\n".encode())
    longest = LONG_SECONDS if random.random() < LONG_SHARE else RUN_SECONDS  # noqa: S311
    await asyncio.sleep(random.random() * longest)  # noqa: S311

    async def effects(conn: Any) -> None:
        await conn.execute("INSERT INTO effects VALUES (%s, %s)", [job.id, run.attempt])

    return Completed({"said": job.content}, effects)


@pipeline("moment")
async def moment(_job: Any, _run: Any) -> str:
    """A moment's work."""
    await asyncio.sleep(random.random() * RUN_SECONDS)  # noqa: S311
    return "done"


pipelines: list[Pipeline] = [entry, moment]
