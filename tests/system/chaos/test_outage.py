"""While the broker is away jobs are accepted and finish, and nobody has to switch anything."""

from __future__ import annotations

import asyncio

import pytest

from tests.system.chaos import outage

pytestmark = pytest.mark.long


async def test_jobs_finish_while_the_broker_is_away_and_come_by_messages_again(database_url: str) -> None:
    async with asyncio.timeout(120):
        assert await outage.run(database_url, 6, 50, "fake", calm=1) == []
