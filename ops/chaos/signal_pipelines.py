"""Attempts of each kind that go on until a file appears, and one that leaves an orphan behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from engine import Job, Pipeline, Run, pipeline

GO: Final = "go"
"""The file, in the folder that a job's content names."""
MOST_SECONDS: Final = 60.0
ORPHAN: Final = "import os, sys\nif os.fork():\n    os._exit(0)\nos.setsid()\n"


def _started(job: Job) -> Path:
    folder = Path(job.content)
    (folder / f"{job.preset}-{job.id}").touch()
    return folder / GO


def _wait(job: Job) -> None:
    """Heeds nothing but the file."""
    go, end = _started(job), time.monotonic() + MOST_SECONDS
    while not go.exists() and time.monotonic() < end:
        time.sleep(0.02)  # another process makes the file


@pipeline("task", backoff=0)
async def task(job: Job, _run: Run) -> None:
    go, end = _started(job), time.monotonic() + MOST_SECONDS
    while not go.exists() and time.monotonic() < end:  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(0.02)


@pipeline("thread", runs="thread", backoff=0)
def thread(job: Job, _run: Run) -> None:
    _wait(job)


@pipeline("process", runs="process", backoff=0)
def process(job: Job, _run: Run) -> None:
    _wait(job)


@pipeline("orphan", runs="thread", backoff=0)
def orphan(job: Job, _run: Run) -> None:
    """Leaves a process without a parent, which ends at once and is somebody's to reap."""
    subprocess.run([sys.executable, "-S", "-c", ORPHAN], check=True, env=dict(os.environ))
    _started(job)


pipelines: list[Pipeline] = [task, thread, process, orphan]
