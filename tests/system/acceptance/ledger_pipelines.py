"""Pipelines for workers that are about to be killed: each run leaves a line in a file, outside the database.

A job's content is a folder. `runs` in it gets a line for each start; an attempt waits until the file `go` or
`go-ATTEMPT` appears there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from engine import Completed, PermanentError, Pipeline, pipeline


def started(job: Any, run: Any) -> Path:
    folder = Path(job.content)
    with (folder / "runs").open("a") as file:
        file.write(f"{job.preset} {job.id} {run.attempt} {os.getpid()}\n")
    return folder


def may_go(folder: Path, run: Any) -> bool:
    return (folder / "go").exists() or (folder / f"go-{run.attempt}").exists()


async def go(folder: Path, run: Any) -> None:
    while not may_go(folder, run):  # noqa: ASYNC110 - it waits for another process
        await asyncio.sleep(0.01)


@pipeline("wait", backoff=0)
async def wait(job: Any, run: Any) -> int:
    await go(started(job, run), run)
    return int(run.attempt)


@pipeline("plain", backoff=0, runs="thread")
def plain(job: Any, run: Any) -> int:
    folder = started(job, run)
    while not may_go(folder, run):
        time.sleep(0.01)  # it waits for another process
    return int(run.attempt)


@pipeline("effects", backoff=0)
async def effects(job: Any, run: Any) -> Completed:
    """The effects are a row in `ledger`."""
    await go(started(job, run), run)

    async def write(conn: Any) -> None:
        await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, run.attempt])

    return Completed(run.attempt, write)


@pipeline("slow_effects", backoff=0)
async def slow_effects(job: Any, run: Any) -> Completed:
    """As `effects`, but it waits inside the transaction."""

    async def write(conn: Any) -> None:
        await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, run.attempt])
        await go(started(job, run), run)

    return Completed(run.attempt, write)


def forked(folder: Path, name: str) -> None:
    """A child that lives on without a word. Its id is the content of the file `name`."""
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    (folder / name).write_text(str(child))


@pipeline("orphaning", backoff=0, runs="thread")
def orphaning(job: Any, run: Any) -> Completed:
    """As `slow_effects`, with a child forked in the thread, and another one inside the transaction."""
    folder = started(job, run)
    forked(folder, f"child-of-thread-{run.attempt}")

    async def write(conn: Any) -> None:
        await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, run.attempt])
        forked(folder, f"child-of-loop-{run.attempt}")
        await go(folder, run)

    return Completed(run.attempt, write)


@pipeline("returning", backoff=0, runs="thread")
def returning(job: Any, run: Any) -> int:
    """The child returns from the function, too."""
    started(job, run)
    child = os.fork()
    return os.waitpid(child, 0)[1] if child else 0


@pipeline("returning_async", backoff=0)
async def returning_async(job: Any, run: Any) -> int:
    """The child goes back to an event loop that is not its own."""
    started(job, run)
    child = os.fork()
    if not child:
        await asyncio.sleep(0)
        return 0
    return os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1])


@pipeline("cycle", backoff=0, runs="thread")
def cycle(_job: Any, _run: Any) -> None:
    """Leaves a megabyte that only the collector finds."""
    kept: list[Any] = [bytearray(1 << 20)]
    kept.append(kept)


@pipeline("short", backoff=0)
async def short(job: Any, run: Any) -> Completed:
    """A moment's work, with effects."""
    started(job, run)
    await asyncio.sleep(0.02)

    async def write(conn: Any) -> None:
        await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, run.attempt])

    return Completed(run.attempt, write)


@pipeline("refused", backoff=0)
async def refused(job: Any, run: Any) -> int:
    """Fails for good, until it may go."""
    if not may_go(started(job, run), run):
        raise PermanentError("not yet")
    return int(run.attempt)


@pipeline("suicide", backoff=0, runs="thread")
def suicide(job: Any, run: Any) -> None:
    started(job, run)
    os.kill(os.getpid(), signal.SIGKILL)


@pipeline("exit", backoff=0, runs="thread")
def leave(job: Any, run: Any) -> None:
    """Ends the process while others run beside it."""
    started(job, run)
    time.sleep(0.3)
    os._exit(1)


@pipeline("orphan", backoff=0, runs="thread")
def orphan(job: Any, run: Any) -> None:
    """Leaves a process without a parent."""
    started(job, run)
    subprocess.run(["sh", "-c", "sleep 0.2 &"], check=True)


@pipeline("moment", backoff=0)
async def moment(job: Any, run: Any) -> None:
    """Outlives what ends the process, if both start together."""
    started(job, run)
    await asyncio.sleep(1)


@pipeline("stuck", timeout=1, max_attempts=1, backoff=0, runs="thread")
def stuck(job: Any, run: Any) -> None:
    started(job, run)
    threading.Event().wait()


@pipeline("block", backoff=0)
async def block(job: Any, run: Any) -> str:
    """Blocks the loop; on its second attempt it has learned."""
    started(job, run)
    if run.attempt == 1:
        time.sleep(600)  # noqa: ASYNC251 - a blocked loop is what it is about
    return "learned"


pipelines: list[Pipeline] = [
    orphan,
    wait,
    plain,
    effects,
    slow_effects,
    orphaning,
    returning,
    returning_async,
    cycle,
    short,
    refused,
    suicide,
    leave,
    moment,
    stuck,
    block,
]
