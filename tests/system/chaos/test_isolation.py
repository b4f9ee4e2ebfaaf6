"""An attempt in a process of its own costs nobody else anything, and SIGKILL loses, doubles and leaves nothing."""

from __future__ import annotations

import asyncio

import pytest

from engine.settings import Transport
from ops.chaos import isolation, orphans, punctuality

pytestmark = pytest.mark.long


async def test_what_breaks_in_a_process_costs_no_neighbour_an_attempt_or_a_second(database_url: str) -> None:
    async with asyncio.timeout(300):
        assert await isolation.run(database_url, times=2, innocent=3) == []


@pytest.mark.parametrize("kind", ["task-sleep", "task-exit", "thread-gil", "spin"])
async def test_a_relay_keeps_time_whatever_its_workers_suffer(database_url: str, kind: str) -> None:
    async with asyncio.timeout(120):
        assert await asyncio.to_thread(punctuality.run, database_url, 200, 5.0, [kind]) == []


@pytest.mark.parametrize("transport", ["postgres", "pubsub"])
async def test_killed_processes_lose_no_job_double_no_effect_and_leave_no_process(
    database_url: str, transport: Transport
) -> None:
    async with asyncio.timeout(300):
        assert await asyncio.to_thread(orphans.run, database_url, 500, 15.0, transport) == []
