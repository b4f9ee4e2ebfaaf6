"""How `up` keeps its processes running."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from engine.process import restarts
from ops.cli.up.children import keep


class Kept:
    """Ends at once, until its third start."""

    role = "worker"

    def __init__(self) -> None:
        self.starts = 0
        self.runs = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        if self.starts < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.runs.set()

    async def ended(self) -> int:
        if self.runs.is_set():
            await asyncio.Event().wait()
        return 1


async def test_a_process_that_cannot_be_started_again_is_tried_again_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restarts, "MIN_BACKOFF_SECONDS", 0.01)
    kept, stop = Kept(), asyncio.Event()
    with capture_logs() as lines:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(keep(kept, stop))
            await kept.runs.wait()
            stop.set()
    assert [line["event"] for line in lines] == ["child.ended", "child.not_started"] * 2 + ["child.ended"]
