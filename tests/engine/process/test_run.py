"""How a process starts and ends: each time for real, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ops.waiting import until

WAIT_SECONDS = 20.0
PREAMBLE = """
import asyncio, sys, threading, time
from engine.process import ending, run as process
from engine.errors import ConfigurationError, DatabaseUnavailable
ending.EXIT_SECONDS = 0.3
"""


def command(body: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE + textwrap.dedent(body) + "\nprocess.run('test', main)"]


@asynccontextmanager
async def started(body: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *command(body),
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


def living(pid: str) -> bool:
    """Whether the process runs. An orphan that has ended may wait for its new parent to notice."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


WAITING = """
async def main(settings, stop):
    print("ready", flush=True)
    await stop.wait()
    print("draining", flush=True)
    {then}
    return 7
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_asks_the_process_to_stop_and_its_code_is_its_own(number: signal.Signals) -> None:
    async with started(WAITING.format(then="pass")) as child:
        assert await line(child) == "ready"
        child.send_signal(number)
        code, said = await ended(child)
    assert code == 7
    assert "process.stopping" in said


async def test_a_terminal_that_closes_twice_begins_one_drain() -> None:
    async with started(WAITING.format(then="await asyncio.sleep(0.2)")) as child:
        assert await line(child) == "ready"
        child.send_signal(signal.SIGHUP)
        assert await line(child) == "draining"
        child.send_signal(signal.SIGHUP)
        code, said = await ended(child)
    assert (code, "process.aborted" in said) == (7, False)


async def test_under_nohup_a_process_outlives_its_terminal() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    async with started(ignoring + textwrap.dedent(WAITING.format(then="pass"))) as child:
        assert await line(child) == "ready"
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)
        code, said = await ended(child)
    assert (code, "SIGHUP" in said) == (7, False)


@pytest.mark.alone
async def test_a_second_signal_ends_it_at_once() -> None:
    async with started(WAITING.format(then="await asyncio.Event().wait()")) as child:
        assert await line(child) == "ready"
        child.send_signal(signal.SIGTERM)
        assert await line(child) == "draining"
        child.send_signal(signal.SIGTERM)
        code, said = await ended(child)
    assert code == 128 + signal.SIGTERM
    assert "process.aborted" in said


@pytest.mark.alone
async def test_a_second_signal_ends_a_process_whose_loop_an_author_blocks() -> None:
    async with started(
        """
        async def main(settings, stop):
            print("ready", flush=True)
            time.sleep(3600)
        """
    ) as child:
        assert await line(child) == "ready"
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGINT)
        code, said = await ended(child)
    assert code in {128 + signal.SIGTERM, 128 + signal.SIGINT}
    assert "process.aborted" in said


POOL = "a pool of processes at work"
NEVER_ENDS = {
    "a task that swallows its cancellation": """
        async def stubborn():
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

        def leave_behind():
            main.task = asyncio.create_task(stubborn())
    """,
    "a thread of the loop's executor": """
        def leave_behind():
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
    """,
    "a thread of an author's executor": """
        def leave_behind():
            ThreadPoolExecutor().submit(time.sleep, 3600)
    """,
    "a thread that is no daemon": """
        def leave_behind():
            threading.Thread(target=time.sleep, args=(3600,)).start()
    """,
    "a child that ignores SIGTERM": """
        def deaf():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            asking.send(1)
            time.sleep(3600)

        def leave_behind():
            multiprocessing.Process(target=deaf).start()
            asked.recv()
    """,
    POOL: """
        def work():
            with multiprocessing.Pool(2, initializer=asking.send, initargs=(1,)) as pool:
                pool.map(time.sleep, [3600, 3600])

        def leave_behind():
            threading.Thread(target=work, daemon=True).start()
            asked.recv()
    """,
    "an exit handler": """
        def leave_behind():
            atexit.register(time.sleep, 3600)
    """,
}


@pytest.mark.parametrize("kind", NEVER_ENDS)
async def test_what_is_left_behind_does_not_keep_the_process_nor_outlive_it(kind: str) -> None:
    begin = """
        import atexit, multiprocessing, signal
        from concurrent.futures import ThreadPoolExecutor

        asked, asking = multiprocessing.Pipe(duplex=False)
    """
    end = """
        async def main(settings, stop):
            leave_behind()
            await asyncio.sleep(0)
            print(*(child.pid for child in multiprocessing.active_children()))
            return 7
    """
    async with started("\n".join(map(textwrap.dedent, (begin, NEVER_ENDS[kind], end)))) as child:
        assert child.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            # Its children have the same output, which ends with the last of them.
            printed, logged = await child.communicate()
        assert child.returncode == 7
    # multiprocessing's own exit handler ends a pool, or waits for it without end: that is a race of its threads.
    assert b"process.abandoned" in logged or kind == POOL
    # A process closes its files a moment before it has ended.
    await until(lambda: not any(map(living, printed.decode().split())))


async def test_exit_handlers_run_and_what_was_printed_is_not_lost() -> None:
    body = """
        import atexit

        async def main(settings, stop):
            atexit.register(print, "handled")
            atexit.register(divmod, 1, 0)
            print("printed")
            return 7
    """
    async with started(body) as child:
        assert child.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            printed, logged = await child.communicate()
    assert (child.returncode, printed.split()) == (7, [b"printed", b"handled"])
    assert b"ZeroDivisionError" in logged
    assert b"process.abandoned" not in logged


async def test_an_output_that_nobody_reads_does_not_keep_the_process() -> None:
    body = """
        import os

        async def main(settings, stop):
            os.set_blocking(1, False)
            try:
                while os.write(1, bytes(65536)):
                    pass
            except BlockingIOError:
                os.set_blocking(1, True)
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
            return 7
    """
    reading, writing = os.pipe()
    try:
        child = await asyncio.create_subprocess_exec(*command(body), stdout=writing, stderr=writing)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                assert await child.wait() == 7
        finally:
            if child.returncode is None:
                child.kill()
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.alone
async def test_a_second_signal_ends_the_children_too() -> None:
    body = """
        import multiprocessing

        async def main(settings, stop):
            child = multiprocessing.Process(target=time.sleep, args=(3600,))
            child.start()
            print(child.pid, flush=True)
            await stop.wait()
            print("draining", flush=True)
            await asyncio.Event().wait()
    """
    async with started(body) as child:
        left = await line(child)
        child.send_signal(signal.SIGTERM)
        assert await line(child) == "draining"
        child.send_signal(signal.SIGTERM)
        assert (await ended(child))[0] == 128 + signal.SIGTERM
    await until(lambda: not living(left))


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
