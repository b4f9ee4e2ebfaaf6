"""Killed relays and workers, and a broker that fails: everything that was accepted happens exactly once."""

from __future__ import annotations

import asyncio

import pytest

from tests.system.chaos import storm

pytestmark = pytest.mark.long


async def test_a_storm_of_kills_and_faults_loses_nothing_and_doubles_nothing(database_url: str) -> None:
    async with asyncio.timeout(120):
        assert await storm.run(database_url, 300, "fake", 1, relay_kills=2, worker_kills=1) == []
