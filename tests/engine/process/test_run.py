"""How a process starts and ends: each time for real, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

WAIT_SECONDS = 20.0
PREAMBLE = """
import asyncio, sys, threading, time
from engine.process import ending, run as process
from engine.errors import ConfigurationError, DatabaseUnavailable
ending.EXIT_SECONDS = 0.3
"""


@asynccontextmanager
async def started(body: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    code = PREAMBLE + textwrap.dedent(body) + "\nprocess.run('test', main)"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def ended(child: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(WAIT_SECONDS):
        _, said = await child.communicate()
    assert child.returncode is not None
    return child.returncode, said.decode()


async def line(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(WAIT_SECONDS):
        return (await child.stdout.readline()).decode().strip()


WAITING = """
async def main(settings, stop):
    print("ready", flush=True)
    await stop.wait()
    print("draining", flush=True)
    {then}
    return 7
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_the_process_to_stop_and_its_code_is_its_own(number: signal.Signals) -> None:
    async with started(WAITING.format(then="pass")) as child:
        assert await line(child) == "ready"
        child.send_signal(number)
        code, said = await ended(child)
    assert code == 7
    assert "process.stopping" in said


async def test_a_second_signal_ends_it_at_once() -> None:
    async with started(WAITING.format(then="await asyncio.Event().wait()")) as child:
        assert await line(child) == "ready"
        child.send_signal(signal.SIGTERM)
        assert await line(child) == "draining"
        child.send_signal(signal.SIGTERM)
        code, said = await ended(child)
    assert code == 128 + signal.SIGTERM
    assert "process.aborted" in said


NEVER_ENDS = {
    "a task that swallows its cancellation": """
        async def stubborn():
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

        async def main(settings, stop):
            main.task = asyncio.create_task(stubborn())
            await asyncio.sleep(0)
            return 7
    """,
    "a thread of the loop's executor": """
        async def main(settings, stop):
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
            return 7
    """,
}


@pytest.mark.parametrize("body", NEVER_ENDS.values(), ids=NEVER_ENDS)
async def test_what_is_left_behind_does_not_keep_the_process(body: str) -> None:
    async with started(body) as child:
        code, said = await ended(child)
    assert code == 7
    assert "process.abandoned" in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ConfigurationError(['first', 'second'])", 2),
        ("DatabaseUnavailable('no answer')", 1),
    ],
)
async def test_a_fault_at_the_start_is_a_line_and_a_code(error: str, code: int) -> None:
    async with started(f"async def main(settings, stop): raise {error}") as child:
        found, said = await ended(child)
    assert found == code
    assert "Traceback" not in said
    assert all(each.startswith("outrider test: ") for each in said.splitlines())


async def test_wrong_settings_stop_it_before_it_starts() -> None:
    body = "async def main(settings, stop): print('started', flush=True)"
    async with started(body, OUTRIDER_HTTP_PORT="x", OUTRIDER_TYPO="y") as child:
        assert child.stdout is not None
        code, said = await ended(child)
    assert code == 2
    assert sorted(each.split(":")[1].strip() for each in said.splitlines()) == [
        "OUTRIDER_HTTP_PORT",
        "OUTRIDER_TYPO",
    ]


async def test_an_unforeseen_error_keeps_its_traceback() -> None:
    async with started("async def main(settings, stop): 1 / 0") as child:
        code, said = await ended(child)
    assert code == 1
    assert "ZeroDivisionError" in said
