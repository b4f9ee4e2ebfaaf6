"""What keeps the event loop from turning is named while it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from engine.process import loop_watch
from engine.process.loop_watch import LoopWatch


@pytest.fixture
async def watch() -> AsyncIterator[None]:
    watch = LoopWatch()
    yield
    watch.stop()


@pytest.fixture
def described() -> Iterator[None]:
    loop_watch.describe_by(lambda task: {"job_id": task.get_name()})
    yield
    loop_watch.describe_by(None)


def blocked() -> float:
    return REGISTRY.get_sample_value("outrider_loop_blocked_total") or 0.0


def block(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.alone
@pytest.mark.usefixtures("watch", "described")
async def test_a_task_that_blocks_the_loop_is_logged_once_with_its_stack_and_its_job() -> None:
    before = blocked()

    async def run() -> None:
        block(2.5)

    with capture_logs() as lines:
        await asyncio.create_task(run(), name="job 7")
        await asyncio.sleep(loop_watch.LOOK_SECONDS * 2)
    told = [line for line in lines if line["event"] == "loop.blocked"]
    assert len(told) == 1
    assert told[0]["job_id"] == "job 7"
    assert "in block\n" in told[0]["stack"]
    assert [line["event"] for line in lines][-1] == "loop.unblocked"
    assert blocked() == before + 1


@pytest.mark.alone
@pytest.mark.usefixtures("watch")
async def test_a_loop_that_turns_is_not_told_of() -> None:
    with capture_logs() as lines:
        for _ in range(10):
            await asyncio.sleep(0.15)
    assert lines == []
