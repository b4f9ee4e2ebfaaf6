"""Pipelines that do in processes of their own what would hurt a worker, and innocent ones beside them."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from engine import Completed, Job, Pipeline, Run, pipeline

TICK_SECONDS: Final = 0.02
NOTABLE_SECONDS: Final = 0.2
TIMEOUT: Final = 2
FORKS: Final = 50

Delays = list[list[float]]
"""Delays of an innocent attempt: when, in seconds since 1970, and how long, in seconds."""


def guilty(preset: str, **options: Any) -> Callable[[Any], Pipeline]:
    defaults = {"backoff": 0.0, "max_attempts": 1, "timeout": 60}
    return pipeline(preset, runs="process", **(defaults | options))


@guilty("exit")
def exits(_job: Job, _run: Run) -> None:
    os._exit(9)


@guilty("segfault")
def segfault(_job: Job, _run: Run) -> None:
    ctypes.string_at(0)


@guilty("spin", timeout=TIMEOUT)
def spin(_job: Job, _run: Run) -> None:
    while True:
        pass


@guilty("gil", timeout=TIMEOUT)
def keeps_the_gil(_job: Job, _run: Run) -> None:
    re.match(r"(a+)+$", "a" * 36 + "b")


@guilty("memory", memory_mb=512)
def eats_memory(_job: Job, _run: Run) -> int:
    return len(bytearray(2 << 30))


@guilty("forks")
def forks(_job: Job, _run: Run) -> int:
    return len([subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) for _ in range(FORKS)])


@guilty("sys-exit")
def sys_exit(_job: Job, _run: Run) -> None:
    sys.exit(3)


@guilty("thread")
def leaves_a_thread(_job: Job, _run: Run) -> None:
    threading.Thread(target=time.sleep, args=[600]).start()


@guilty("pool")
def leaves_a_pool(_job: Job, _run: Run) -> list[int]:
    return multiprocessing.Pool(2).map(abs, [1, 2])


@guilty("recursion")
def recursion(job: Job, run: Run) -> None:
    recursion.function(job, run)


@guilty("signals")
def changes_signals(_job: Job, _run: Run) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@guilty("flood")
def flood(_job: Job, _run: Run) -> None:
    for number in range(50_000):
        print("flood", number)


@guilty("sleep", timeout=TIMEOUT)
def sleeps(_job: Job, _run: Run) -> None:
    # Longer than the attempt may take, in one call that looks at nothing.
    time.sleep(60)


@guilty("cancelled")
def is_cancelled(_job: Job, _run: Run) -> None:
    # Longer than the attempt may take, in one call that looks at nothing.
    time.sleep(60)


@pipeline("innocent-task", max_attempts=1, timeout=3600)
async def innocent_task(job: Job, _run: Run) -> Delays:
    """Until the file that the job names is there."""
    delays, end = _Delays(), Path(job.content)
    while not end.exists():  # noqa: ASYNC240 - in a folder of memory or of the kernel's cache
        await asyncio.sleep(TICK_SECONDS)
        delays.tick()
    return delays.notable


def _innocent(job: Job, _run: Run) -> Delays:
    delays, end = _Delays(), Path(job.content)
    while not end.exists():
        # Short, so that whatever holds this attempt up is seen.
        time.sleep(TICK_SECONDS)
        delays.tick()
    return delays.notable


class _Delays:
    def __init__(self) -> None:
        self.notable: Delays = []
        self._last = time.time()

    def tick(self) -> None:
        now = time.time()
        late, self._last = now - self._last - TICK_SECONDS, now
        if late > NOTABLE_SECONDS:
            self.notable.append([now, late])


innocent_thread = pipeline("innocent-thread", runs="thread", max_attempts=1, timeout=3600)(_innocent)
innocent_process = pipeline("innocent-process", runs="process", max_attempts=1, timeout=3600)(_innocent)


@pipeline("effects", runs="process", max_attempts=25, backoff=0.0)
def effects(job: Job, _run: Run) -> Completed:
    async def write(conn: Any) -> None:
        await conn.execute("INSERT INTO chaos_effect (job_id) VALUES (%s)", [job.id])

    time.sleep(0.02)
    return Completed(None, effects=write)


pipelines = [each for each in list(globals().values()) if isinstance(each, Pipeline)]
