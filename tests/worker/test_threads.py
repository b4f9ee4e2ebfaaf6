"""The threads of plain functions are few and used again, and each attempt ends with the author's hook."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import orjson
import psycopg
import pytest
from structlog.testing import capture_logs

from engine.errors import ConfigurationError
from engine.model import Completed, JobState
from engine.pipeline import Pipeline
from ops.waiting import until
from tests.support.database import fetchone
from tests.support.worker_harness import WorkerHarness, preset
from tests.worker.test_execution import Watched
from tests.worker.test_outcome import made
from worker import threads

SLOTS = 4


@pytest.fixture(autouse=True)
def _no_idle_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_idle", [])


async def output(watched: Watched) -> Any:
    outcome = await watched.run()
    assert isinstance(outcome, Completed)
    return orjson.loads(outcome.output.text)


async def test_attempts_one_after_the_other_run_in_one_thread() -> None:
    used = set()

    @preset()
    def noted(_job: Any, _run: Any) -> None:
        used.add(threading.get_ident())

    for _ in range(20):
        assert isinstance(await Watched(noted).run(), Completed)
    assert len(used) == 1


async def test_a_thread_is_called_as_its_attempt_and_sees_its_context() -> None:
    watched = Watched(made(function=lambda _job, _run: threading.current_thread().name))
    assert await output(watched) == f"attempt {watched.execution.attempt.job.id}"


async def test_an_idle_thread_keeps_nothing_of_its_last_attempt() -> None:
    class Large:
        pass

    seen: list[weakref.ref[Large]] = []

    @preset()
    def large(_job: Any, _run: Any) -> None:
        kept = Large()
        seen.append(weakref.ref(kept))

    await Watched(large).run()

    def gone() -> bool:
        gc.collect()
        return seen[0]() is None

    await until(gone)


async def test_connections_kept_in_threads_are_no_more_than_slots(harness: WorkerHarness) -> None:
    kept = threading.local()
    opened: list[psycopg.Connection[Any]] = []

    @preset()
    def orm(_job: Any, _run: Any) -> None:
        if not hasattr(kept, "conn"):
            kept.conn = psycopg.connect(harness.url, autocommit=True, application_name="author")
            opened.append(kept.conn)
        kept.conn.execute("SELECT 1")

    ids = [await harness.enqueue() for _ in range(100)]
    try:
        async with harness.worker(orm, slots=SLOTS):
            assert {job.state for job in await harness.ended(*ids)} == {JobState.COMPLETED}
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'author'"
        assert 0 < len(opened) <= SLOTS
        assert await fetchone(harness.conn, count) == (len(opened),)
    finally:
        for conn in opened:
            conn.close()


def hooked(function: Any, hook: Any) -> Pipeline:
    return preset(after_attempt=hook)(function)


def plain(_job: Any, _run: Any) -> str:
    return "done"


async def on_the_loop(_job: Any, _run: Any) -> str:
    await asyncio.sleep(0)
    return "done"


def raising(_job: Any, _run: Any) -> None:
    raise ValueError


async def raising_on_the_loop(_job: Any, _run: Any) -> None:
    raise ValueError


@pytest.mark.parametrize("function", [plain, on_the_loop, raising, raising_on_the_loop])
async def test_the_hook_is_called_after_each_attempt_in_its_thread(function: Any) -> None:
    called: list[str] = []

    def hook() -> None:
        called.append(threading.current_thread().name)

    watched = Watched(hooked(function, hook))
    await watched.run()
    in_thread = not asyncio.iscoroutinefunction(function)
    own = f"attempt {watched.execution.attempt.job.id}"
    assert called == [own if in_thread else threading.current_thread().name]


def wrapping(job: Any, run: Any) -> Any:
    """As a plain decorator round an async function does."""
    return on_the_loop(job, run)


async def test_the_hook_of_a_plain_function_that_returns_an_awaitable_is_called_once_in_its_thread() -> None:
    called: list[str] = []
    watched = Watched(hooked(wrapping, lambda: called.append(threading.current_thread().name)))
    assert await output(watched) == "done"
    assert called == [f"attempt {watched.execution.attempt.job.id}"]


@pytest.mark.parametrize("function", [plain, on_the_loop])
@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_an_error_of_the_hook_is_logged_and_changes_nothing(
    function: Any, error: type[BaseException]
) -> None:
    def hook() -> None:
        raise error

    with capture_logs() as logged:
        assert await output(Watched(hooked(function, hook))) == "done"
    assert [line["event"] for line in logged] == ["hook.raised"]


async def ahook() -> None: ...


@pytest.mark.parametrize("hook", [ahook, "close", 1])
def test_a_hook_that_is_no_plain_function_is_refused(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="after_attempt"):
        hooked(plain, hook)
