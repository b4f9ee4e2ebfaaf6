"""A pipeline that its processes do not find is told when the worker starts, with the fix, and not by its first job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.errors import ConfigurationError, OutriderError
from engine.pipeline import Registry, load_pipelines, pipeline
from engine.settings import load
from ops.waiting import until
from tests.support.worker_harness import WorkerHarness
from worker.children.pool import START_SECONDS
from worker.opening import open_consumer
from worker.source import PostgresSource

# A worker imports this; in its children the list is another one.
CHANGING = """
from pathlib import Path

from engine import pipeline

seen = Path(__file__).with_suffix(".seen")


def work(job, run): ...


pipelines = [pipeline("fickle")(work)] if not seen.exists() else []
seen.touch()
"""
STEADY = CHANGING.replace("if not seen.exists() else []", "").replace("seen.touch()", "")

# A worker imports this; its children end at it.
DYING = """
if seen.exists():
    import os

    os._exit(7)
seen.touch()


def work"""


# A worker imports this; its children never come to the end of it.
HANGING = DYING.replace("import os", "import time").replace("os._exit(7)", "time.sleep(600)")


def plain(_job: Any, _run: Any) -> None: ...


async def open_and_close(
    harness: WorkerHarness, registry: Registry, modules: str, stop: asyncio.Event | None = None
) -> None:
    settings = load({"OUTRIDER_DATABASE_URL": harness.url, "OUTRIDER_PIPELINES": modules})
    source = PostgresSource(harness.url, tuple(registry))
    async with open_consumer(settings, harness.url, source, registry, stop or asyncio.Event()):
        pass


@pytest.mark.parametrize("function_is_local", [True, False])
async def test_a_worker_refuses_to_start_with_a_pipeline_that_is_in_no_list(
    harness: WorkerHarness, function_is_local: bool
) -> None:
    def closure(_job: Any, _run: Any) -> None: ...

    registry = Registry([pipeline("unlisted")(closure if function_is_local else plain)])
    with pytest.raises(ConfigurationError, match=r"'unlisted' runs in a process.*with runs=.thread"):
        await open_and_close(harness, registry, "tests.worker.children.hostile")


async def test_a_worker_refuses_to_start_with_a_module_that_lists_something_else_in_a_child(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fickle_pipelines.py").write_text(CHANGING)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="in a child: pipeline 'fickle' runs in a process"):
        await open_and_close(harness, load_pipelines(["fickle_pipelines"]), "fickle_pipelines")


async def test_a_worker_whose_pipelines_run_in_threads_needs_no_list(harness: WorkerHarness) -> None:
    await open_and_close(harness, Registry([pipeline("unlisted", runs="thread")(plain)]), "")


async def test_a_worker_starts_with_plain_functions_that_are_listed(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "steady_pipelines.py").write_text(STEADY)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_pipelines(["steady_pipelines"])
    assert registry["fickle"].runs == "process"
    await open_and_close(harness, registry, "steady_pipelines")


async def test_a_worker_whose_children_die_at_the_import_says_so_when_it_starts_and_is_not_ready(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying_pipelines.py").write_text(STEADY.replace("def work", DYING))
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_pipelines(["dying_pipelines"])
    settings = load({"OUTRIDER_DATABASE_URL": harness.url, "OUTRIDER_PIPELINES": "dying_pipelines"})
    source, stop = PostgresSource(harness.url, tuple(registry)), asyncio.Event()
    with capture_logs() as lines:
        async with open_consumer(settings, harness.url, source, registry, stop) as consumer:
            running = asyncio.create_task(consumer.run(stop))

            async def fault() -> str:
                try:
                    await consumer.ready()
                except OutriderError as error:
                    return str(error)
                return ""

            async def told() -> bool:
                return "exited with code 7" in await fault()

            await until(told)
            stop.set()
            assert await running == 0
    [line] = [line for line in lines if line["event"] == "child.not_started"]
    assert "exited with code 7" in line["error"]


async def test_a_stop_ends_the_wait_for_a_child_that_does_not_come_to_the_end_of_its_imports(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging_pipelines.py").write_text(STEADY.replace("def work", HANGING))
    monkeypatch.syspath_prepend(tmp_path)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(1.0, stop.set)
    async with asyncio.timeout(START_SECONDS / 2):
        await open_and_close(harness, load_pipelines(["hanging_pipelines"]), "hanging_pipelines", stop)
