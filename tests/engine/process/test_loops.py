"""Loops that go on after a fault which nobody expected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from engine.process.loops import keep_running


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.process.loops.PAUSE_SECONDS", 0.0)


def counted() -> float:
    return REGISTRY.get_sample_value("outrider_loop_faults_total", {"loop": "report"}) or 0.0


@pytest.mark.parametrize(
    "fault", [lambda: TypeError("a bug"), asyncio.CancelledError], ids=["bug", "cancelled below"]
)
async def test_a_loop_that_fails_is_logged_counted_and_run_again(fault: Callable[[], BaseException]) -> None:
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise fault()

    before = counted()
    with capture_logs() as lines:
        async with asyncio.timeout(5):
            await keep_running("report", loop)
    assert (runs, counted() - before) == (3, 2)
    assert [(line["event"], line["log_level"], line["loop"]) for line in lines] == [
        ("loop.failed", "error", "report")
    ] * 2
    assert all(isinstance(line["exc_info"], type(fault())) for line in lines)


async def test_a_loop_that_is_cancelled_ends() -> None:
    begun = asyncio.Event()

    async def loop() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(keep_running("report", loop))
    async with asyncio.timeout(5):
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def test_a_loop_that_fails_while_it_is_cancelled_ends() -> None:
    begun = asyncio.Event()

    async def loop() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while closing")

    task = asyncio.create_task(keep_running("report", loop))
    async with asyncio.timeout(5):
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
    assert isinstance(task.exception(), ValueError)
