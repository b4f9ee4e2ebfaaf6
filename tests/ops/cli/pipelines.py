"""Pipelines for the tests of the command line; worked by processes that name this module in OUTRIDER_PIPELINES."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from engine import Job, PermanentError, Run, pipeline


@pipeline("echo")
async def echo(job: Job, run: Run) -> Any:
    run.progress(0.5, "half way")
    return {"content": job.content}


@pipeline("fail")
async def fail(job: Job, run: Run) -> Any:  # noqa: ARG001 - a pipeline's signature
    raise PermanentError(job.content)


@pipeline("gated", timeout=60)
async def gated(job: Job, run: Run) -> Any:  # noqa: ARG001 - a pipeline's signature
    """Runs until the file that the content names exists."""
    while not Path(job.content).exists():  # noqa: ASYNC110, ASYNC240 - the event is another process's
        await asyncio.sleep(0.01)
    return {"content": job.content}


pipelines = [echo, fail, gated]
