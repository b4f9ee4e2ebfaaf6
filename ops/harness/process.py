"""Starts our own processes as children that end with this process."""

from __future__ import annotations

import os
import subprocess
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Final

from engine.process.prctl import die_with_parent
from ops.harness.ports import HOST
from ops.waiting import eventually

ROOT: Final = Path(__file__).parents[2]
"""The folder that holds our packages."""
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0


def outrider(*words: str) -> list[str]:
    """The command `outrider …` for this interpreter.

    -P: a folder `web` in the current directory must not be imported.
    """
    return [sys.executable, "-P", "-m", "ops.cli", *words]


async def start(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    output: IO[bytes] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Start a child with exactly this environment. Its output goes to the file `output`, if one is given.

    The child's standard input is a pipe that this process holds: with `--tied` the child ends with this process. The
    child has its own session. Else the terminal's Ctrl-C would reach it in addition to our SIGTERM, and two signals
    mean "at once". No code runs between fork and exec, because gRPC's threads can break a forked process.
    """
    return await create_subprocess_exec(
        *command, stdin=PIPE, stdout=output, stderr=output, start_new_session=True, env=environ, cwd=cwd
    )


@contextmanager
def running(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    admin_port: int,
    errors: IO[bytes] | None = None,
    cwd: Path = ROOT,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child, yield it when it is ready, and end it by SIGTERM. Raises ChildProcessError. Blocks."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, parent=os.getpid()),
    )
    try:
        eventually(lambda: process.poll() is not None or is_ready(admin_port), START_SECONDS, poll=0.02)
        if process.poll() is not None or not is_ready(admin_port):
            raise ChildProcessError(f"{process.args!r} does not become ready; exit code {process.poll()}")
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """The CPU time that a living process has used so far, with its threads and its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def is_ready(admin_port: int) -> bool:
    """Whether /readyz answers 200. False while no process listens."""
    connection = HTTPConnection(HOST, admin_port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
