"""Pipelines that end in every way there is; most jobs just complete."""

from __future__ import annotations

import asyncio
from typing import Any

from engine import PermanentError, Pipeline, Snoozed, pipeline


@pipeline("steady")
async def steady(_job: Any, run: Any) -> int:
    return int(run.attempt)


@pipeline("shaky", backoff=0, runs="thread")
def shaky(_job: Any, run: Any) -> None:
    """Fails once."""
    if run.attempt == 1:
        raise ValueError("not yet")


@pipeline("hopeless", backoff=0, max_attempts=2)
async def hopeless(_job: Any, _run: Any) -> None:
    raise ValueError("never")


@pipeline("refused")
async def refused(_job: Any, _run: Any) -> None:
    raise PermanentError("not this one")


@pipeline("endless", timeout=1, backoff=0, max_attempts=2)
async def endless(_job: Any, _run: Any) -> None:
    await asyncio.Event().wait()


@pipeline("sleepy")
async def sleepy(_job: Any, run: Any) -> Snoozed | None:
    return Snoozed(0.1) if run.attempt == 1 else None


@pipeline("held")
async def held(_job: Any, run: Any) -> None:
    """Runs until it is cancelled; put back by a redrive, it ends at once."""
    if run.attempt == 1:
        await asyncio.Event().wait()


pipelines: list[Pipeline] = [steady, shaky, hopeless, refused, endless, sleepy, held]
SHARES = {"shaky": 0.05, "hopeless": 0.03, "refused": 0.03, "endless": 0.01, "sleepy": 0.03, "held": 0.01}
"""Of all jobs; the rest is steady."""
