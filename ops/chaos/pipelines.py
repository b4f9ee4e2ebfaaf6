"""Pipelines that run long enough to be interrupted."""

from __future__ import annotations

import asyncio
from typing import Final

from engine import Job, Run, pipeline

RUN_SECONDS: Final = 0.05


@pipeline("pause")
async def pause(_job: Job, run: Run) -> int:
    """Runs for 50 ms and returns the number of its attempt."""
    await asyncio.sleep(RUN_SECONDS)
    return run.attempt


@pipeline("linger")
async def linger(job: Job, run: Run) -> int:
    """Runs for as many seconds as the content says, reports nothing, and returns the number of its attempt."""
    await asyncio.sleep(float(job.content))
    return run.attempt


pipelines = [pause, linger]
