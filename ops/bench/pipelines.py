"""Pipelines that do nothing, so that only the engine costs."""

from __future__ import annotations

import asyncio
import time

from engine import Job, Run, pipeline


@pipeline("noop")
async def noop(_job: Job, _run: Run) -> None:
    """Nothing."""


@pipeline("clock")
async def clock(_job: Job, _run: Run) -> float:
    """The time at which it was started, in seconds since 1970: the database's clock, where both are on one machine."""
    return time.time()


@pipeline("short")
async def short(_job: Job, _run: Run) -> None:
    """Five milliseconds."""
    await asyncio.sleep(0.005)


pipelines = [noop, clock, short]
