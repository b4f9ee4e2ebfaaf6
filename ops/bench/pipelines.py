"""Pipelines that do nothing, so that only the engine costs."""

from __future__ import annotations

import asyncio
import time

from engine import Job, Run, pipeline


@pipeline("noop")
async def noop(_job: Job, _run: Run) -> None:
    """Does nothing."""


@pipeline("noop-thread", runs="thread")
def noop_thread(_job: Job, _run: Run) -> None:
    """Does nothing."""


@pipeline("noop-process", runs="process")
def noop_process(_job: Job, _run: Run) -> None:
    """Does nothing."""


@pipeline("hold-process", runs="process")
def hold_process(_job: Job, _run: Run) -> None:
    """Holds its process for a second."""
    # So long that no other job gets this process meanwhile: each of those that are measured has its own.
    time.sleep(1)


@pipeline("clock-thread", runs="thread")
def clock_thread(_job: Job, _run: Run) -> float:
    """As `clock`."""
    return time.time()


@pipeline("clock-process", runs="process")
def clock_process(_job: Job, _run: Run) -> float:
    """As `clock`."""
    return time.time()


@pipeline("clock")
async def clock(_job: Job, _run: Run) -> float:
    """Returns the time of its start in seconds since 1970. On one machine the database has the same clock."""
    return time.time()


@pipeline("short")
async def short(_job: Job, _run: Run) -> None:
    """Runs for five milliseconds."""
    await asyncio.sleep(0.005)


pipelines = [noop, noop_thread, noop_process, hold_process, clock, clock_thread, clock_process, short]
