"""Pipelines that run in processes and do there what would hurt a worker."""

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
from contextlib import suppress
from typing import Any

import structlog

from engine import Completed, Job, Pipeline, Run, pipeline


def declared(preset: str, **options: Any) -> Callable[[Any], Pipeline]:
    return pipeline(preset, runs="process", **({"backoff": 0.0, "max_attempts": 1, "timeout": 60} | options))


@declared("echo")
def echo(job: Job, run: Run) -> dict[str, Any]:
    return {"said": job.content, "pid": os.getpid(), "attempt": run.attempt}


@declared("echo-async")
async def echo_async(job: Job, _run: Run) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"said": job.content, "pid": os.getpid()}


@declared("record")
def record(job: Job, _run: Run) -> Completed:
    async def effects(conn: Any) -> None:
        if job.content == "raise":
            raise ValueError("the effects have failed")
        await conn.execute("INSERT INTO seen (job_id, pid) VALUES (%s, %s)", [job.id, os.getpid()])
        if job.content == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    return Completed({"pid": os.getpid()}, effects=effects)


@declared("waits")
def waits(_job: Job, run: Run) -> str:
    """Until it is told to come to its end."""
    with run.step("waiting"):
        run.progress(0.25, "a quarter")
        return "stopping" if run.stopping.wait(60) else "not told"


@declared("logs")
def logs(_job: Job, _run: Run) -> None:
    structlog.get_logger().warning("label.printed", copies=2)
    print("printed by hand")


@declared("exit")
def exits(_job: Job, run: Run) -> None:
    with run.step("render"):
        run.progress(0.3, "a third")
        print("last words")
        os._exit(9)


@declared("segfault")
def segfault(_job: Job, _run: Run) -> None:
    ctypes.string_at(0)


@declared("spin", timeout=1)
def spin(_job: Job, _run: Run) -> None:
    while True:
        pass


@declared("gil", timeout=1)
def keeps_the_gil(_job: Job, _run: Run) -> None:
    re.match(r"(a+)+$", "a" * 36 + "b")


@declared("deaf", timeout=1)
def deaf(_job: Job, _run: Run) -> None:
    while True:
        with suppress(BaseException):  # as some authors' code does
            time.sleep(60)


@declared("memory", memory_mb=256)
def eats_memory(_job: Job, _run: Run) -> int:
    return len(bytearray(2 << 30))


@declared("sys-exit")
def sys_exit(_job: Job, _run: Run) -> None:
    sys.exit(3)


@declared("thread")
def leaves_a_thread(_job: Job, _run: Run) -> int:
    threading.Thread(target=time.sleep, args=[600], name="left over", daemon=True).start()
    return os.getpid()


@declared("pool")
def leaves_a_pool(_job: Job, _run: Run) -> list[int]:
    return multiprocessing.Pool(2).map(os.getpgid, [0, 0])


@declared("orphans")
def leaves_orphans(_job: Job, _run: Run) -> list[int]:
    return [subprocess.Popen(["sleep", "600"], start_new_session=True).pid for _ in range(50)]


@declared("recursion")
def recursion(job: Job, run: Run) -> None:
    recursion.function(job, run)


@declared("signals")
def changes_signals(_job: Job, _run: Run) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    os.chdir("/")
    return os.getpid()


@declared("flood")
def flood(_job: Job, _run: Run) -> None:
    for number in range(50_000):
        print("flood", number)


@declared("sleep", timeout=1)
def sleeps(_job: Job, _run: Run) -> None:
    time.sleep(60)


@pipeline("innocent", max_attempts=1)
async def innocent(_job: Job, _run: Run) -> float:
    """Returns the longest time that the worker's loop kept it waiting, in seconds."""
    worst, until = 0.0, time.monotonic() + 4
    while (now := time.monotonic()) < until:
        await asyncio.sleep(0.01)
        worst = max(worst, time.monotonic() - now - 0.01)
    return worst


pipelines = [each for each in list(globals().values()) if isinstance(each, Pipeline)]
