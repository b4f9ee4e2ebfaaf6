"""An async function behind a plain decorator: its wrapper runs in a thread, and what that returns on the event loop."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

import pytest

from engine.errors import PermanentError
from engine.model import Cancelled, Completed, Failed, JobError
from tests.worker.test_execution import WAIT_SECONDS, Watched
from tests.worker.test_outcome import made
from worker.outcome import label


def decorated(function: Any) -> Any:
    """A plain function round an async one, as a decorator makes it."""
    return lambda job, run: function(job, run)


async def test_an_async_function_behind_a_plain_decorator_is_awaited_on_the_loop() -> None:
    @decorated
    async def name(_job: Any, _run: Any) -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    @decorated
    async def failing(_job: Any, _run: Any) -> str:
        raise PermanentError("never")

    @decorated
    @decorated
    async def forgetful(job: Any, run: Any) -> Any:
        return name(job, run)

    for function in (name, forgetful):
        outcome = await Watched(made(function=function)).run()
        assert isinstance(outcome, Completed)
        assert outcome.output.text == '"MainThread"'
    assert await Watched(made(function=failing)).run() == Failed(JobError("PermanentError", "never"))


async def test_a_decorator_that_runs_an_async_function_to_its_end_still_may() -> None:
    async def name(_job: Any, _run: Any) -> str:
        return threading.current_thread().name

    @functools.wraps(name)
    def run_it(job: Any, run: Any) -> str:
        return asyncio.run(name(job, run))

    outcome = await Watched(made(function=run_it)).run()
    assert isinstance(outcome, Completed)
    assert "attempt" in outcome.output.text


async def test_an_async_function_behind_a_plain_decorator_is_stopped_like_any_other() -> None:
    started, unwound = asyncio.Event(), asyncio.Event()

    @decorated
    async def wait(_job: Any, _run: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            unwound.set()

    watched = Watched(made(function=wait))
    watched.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
    watched.execution.time_out()
    outcome = await watched.outcome()
    assert unwound.is_set()
    assert label(outcome) == "timeout"


@pytest.mark.filterwarnings("error")
async def test_an_async_function_behind_a_plain_decorator_does_not_start_once_it_is_stopped() -> None:
    let_go = threading.Event()

    async def never(_job: Any, _run: Any) -> None:
        raise AssertionError

    def slow(job: Any, run: Any) -> Any:
        assert let_go.wait(WAIT_SECONDS)
        return never(job, run)

    watched = Watched(made(function=slow))
    watched.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.sleep(0)
    watched.execution.stop(Cancelled())
    let_go.set()
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()
    assert watched.heard == [Cancelled()]
