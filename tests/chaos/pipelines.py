"""Pipelines of the chaos runs. Each start leaves a line in the file that CHAOS_LEDGER names, outside the database."""

from __future__ import annotations

import asyncio
import os
import random
from functools import cache
from typing import Any

from engine.model import Completed
from engine.pipeline import Pipeline, pipeline

MAX_RUN_SECONDS = 0.04


@cache
def ledger() -> int:
    return os.open(os.environ["CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@pipeline("entry", backoff=0)
async def entry(job: Any, run: Any) -> Completed:
    """A moment's work; its effects are a row in `effects`, which has no key. Its output repeats the content."""
    os.write(ledger(), f"{job.id} {run.attempt}\n".encode())
    await asyncio.sleep(random.random() * MAX_RUN_SECONDS)  # noqa: S311

    async def effects(conn: Any) -> None:
        await conn.execute("INSERT INTO effects VALUES (%s, %s)", [job.id, run.attempt])

    return Completed({"said": job.content}, effects)


@pipeline("moment")
async def moment(_job: Any, _run: Any) -> str:
    """A moment's work."""
    await asyncio.sleep(random.random() * MAX_RUN_SECONDS)  # noqa: S311
    return "done"


pipelines: list[Pipeline] = [entry, moment]
