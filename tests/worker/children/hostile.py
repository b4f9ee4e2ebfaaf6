"""Pipelines that run in processes and do there what would hurt a worker."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from typing import Any

import structlog

from engine import Completed, Failed, Job, Pipeline, Run, pipeline
from engine.model import JobError
from ops.chaos.isolation_pipelines import guilty as declared


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
        if job.content == "task":
            kept.append(asyncio.create_task(asyncio.sleep(600)))
        if job.content == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    return Completed({"pid": os.getpid()}, effects=effects)


@declared("record-plainly")
def record_plainly(_job: Job, _run: Run) -> Completed:
    def effects(_conn: Any) -> None: ...

    return Completed(None, effects=effects)  # type: ignore[arg-type]  # the mistake that is tested


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


@declared("says")
def says(job: Job, _run: Run) -> None:
    print("line", job.content)
    print("rest", job.content, end="")


@declared("exit")
def exits(_job: Job, run: Run) -> None:
    with run.step("render"):
        run.progress(0.3, "a third")
        print("last words")
        os._exit(9)


@declared("killed", max_attempts=2, memory_mb=512)
def is_killed(_job: Job, run: Run) -> None:
    with run.step("render"):
        bytearray(100 << 20)
        os.kill(os.getpid(), signal.SIGKILL)


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


@declared("closes")
def closes_descriptors(_job: Job, _run: Run) -> None:
    os.closerange(3, 1000)
    time.sleep(60)


@declared("junk")
def writes_junk(_job: Job, _run: Run) -> None:
    for number in range(3, 100):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, b"\0\0\0\5hello")
    time.sleep(60)


@declared("stdout")
def closes_stdout(_job: Job, _run: Run) -> int:
    sys.stdout.close()
    return os.getpid()


@declared("task")
async def leaves_a_task(_job: Job, _run: Run) -> int:
    kept.append(asyncio.create_task(asyncio.sleep(600)))
    return os.getpid()


@declared("task-unrun")
def leaves_a_task_that_has_not_begun(_job: Job, _run: Run) -> int:
    kept.append(asyncio.get_event_loop().create_task(asyncio.sleep(600)))
    return os.getpid()


@declared("call")
async def leaves_a_call(_job: Job, _run: Run) -> int:
    kept.append(asyncio.create_task(asyncio.to_thread(time.sleep, 600)))
    await asyncio.sleep(0.05)
    kept.pop().cancel()
    return os.getpid()


@declared("helper")
def starts_a_helper(_job: Job, _run: Run) -> int:
    """A process that its parent leaves, as daemons and `sh -c 'helper &'` do, and that the attempt goes on to use."""
    pid = int(
        subprocess.run(["sh", "-c", "sleep 600 >&- 2>&- & echo $!"], capture_output=True, check=True).stdout
    )
    time.sleep(2.5)
    os.kill(pid, 0)
    return pid


@declared("shell")
def leaves_a_shell(_job: Job, _run: Run) -> int:
    os.system("sleep 600 &")  # noqa: S605 - with all descriptors that are inherited
    os._exit(9)


@declared("forks")
def returns_twice(_job: Job, _run: Run) -> int:
    os.fork()
    return os.getpid()


@declared("nested")
def runs_a_loop(_job: Job, _run: Run) -> int:
    return asyncio.run(asyncio.sleep(0, os.getpid()))


@declared("term")
def gets_sigterm(_job: Job, run: Run) -> bool:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    return run.cancelled.is_set()


@declared("told", timeout=1)
def logs_without_end(_job: Job, _run: Run) -> None:
    while True:
        structlog.get_logger().info("label.printed")


@declared("own-class")
def answers_with_an_own_class(_job: Job, _run: Run) -> Failed:
    class Text(str): ...

    return Failed(JobError("Refused", Text("no")))


@declared("limits")
def changes_limits(_job: Job, _run: Run) -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.umask(0o777)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - kept by the process
    return os.getpid()


@declared("large")
def answers_at_length(_job: Job, _run: Run) -> str:
    return "x" * (64 << 20)


@declared("refused")
def reports_nonsense(_job: Job, run: Run) -> None:
    run.progress("half")  # type: ignore[arg-type]
    run.progress(0.5, Unreadable())  # type: ignore[arg-type]
    with run.step(Unreadable()):  # type: ignore[arg-type]
        pass


@declared("steps")
async def takes_steps(job: Job, run: Run) -> None:
    with run.step("outer"), run.step("inner"):
        if job.content == "die":
            os._exit(9)
    with suppress(ValueError), run.step("failing"):
        raise ValueError


@declared("says-when")
def waits_at_first(_job: Job, run: Run) -> None:
    if run.attempt == 1:
        with run.step("first"):
            time.sleep(60)


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


kept: list[asyncio.Task[Any]] = []


@declared("sleep-long")
def sleeps_long(_job: Job, run: Run) -> None:
    with run.step("sleeping"):
        time.sleep(60)


@pipeline("innocent", max_attempts=1)
async def innocent(_job: Job, _run: Run) -> float:
    """Returns the longest time that the worker's loop kept it waiting, in seconds."""
    worst, until = 0.0, time.monotonic() + 4
    while (now := time.monotonic()) < until:
        await asyncio.sleep(0.01)
        worst = max(worst, time.monotonic() - now - 0.01)
    return worst


@declared("writes-to-nobody")
def writes_to_nobody(_job: Job, _run: Run) -> list[str]:
    reading, writing = os.pipe()
    os.close(reading)
    errors = []
    try:
        os.write(writing, b"x")
    except OSError as error:
        errors.append(type(error).__name__)
    os.close(writing)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    with tempfile.TemporaryFile(buffering=0) as file:
        try:
            file.write(b"xx")
            file.write(b"x")
        except OSError as error:
            errors.append(type(error).__name__)
    return errors


@declared("imports")
def imports_late(_job: Job, _run: Run) -> list[Any]:
    import tests.worker.children.opinionated  # noqa: F401 - as authors do whose module takes long to load

    filtered = any(each[1] is not None and each[1].pattern == "opinionated" for each in warnings.filters)
    return [os.getpid(), time.tzname[0], sys.getrecursionlimit(), filtered]


pipelines = [each for each in list(globals().values()) if isinstance(each, Pipeline)]
