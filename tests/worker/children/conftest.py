from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.settings import load
from engine.telemetry import logs
from ops.chaos import tampering_pipelines
from tests.support.worker_harness import Worker, WorkerHarness
from tests.worker.children import hostile
from worker.children.pool import Children, open_children
from worker.children.setting import Setting

MIB = 1 << 20
MODULES = (hostile, tampering_pipelines)

ChildLines = Callable[[], list[dict[str, Any]]]
OpenWorker = Callable[..., AbstractAsyncContextManager[tuple[Worker, Children]]]


def lives(pid: int) -> bool:
    """Whether there is a process of this id that is no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def kill_nursery(children: Children) -> None:
    assert children._nursery is not None
    children._nursery._process.kill()


@pytest.fixture
def open_worker(harness: WorkerHarness) -> OpenWorker:
    """Opens a worker with the pipelines of MODULES, and the children that it runs them in."""

    @asynccontextmanager
    async def opened(
        max_jobs: int = 1000, max_mb: int = 512, **options: Any
    ) -> AsyncIterator[tuple[Worker, Children]]:
        modules = ",".join(module.__name__ for module in MODULES)
        settings = load({"OUTRIDER_DATABASE_URL": harness.url, "OUTRIDER_PIPELINES": modules})
        pipelines = [each for module in MODULES for each in module.pipelines]
        presets = [each.preset for each in pipelines if each.runs == "process"]
        setting = Setting(settings, "worker", presets, max_jobs, max_mb * MIB)
        async with (
            open_children(setting) as children,
            harness.worker(*pipelines, children=children, **options) as worker,
        ):
            yield worker, children

    return opened


@pytest.fixture
def child_lines(monkeypatch: pytest.MonkeyPatch) -> ChildLines:
    """Returns the lines that children have logged. Configured, the log of this process would be so for other tests."""
    passed_on: list[bytes] = []
    monkeypatch.setattr(logs, "pass_on", passed_on.append)
    return lambda: [json.loads(line) for line in b"".join(passed_on).splitlines()]
