"""Workers stopped and started again under load lose nothing and spend nothing."""

from __future__ import annotations

import asyncio

import pytest

from ops.chaos import restarts

pytestmark = pytest.mark.long


@pytest.mark.parametrize("drain", [0.0, 2.0], ids=["released", "drained"])
async def test_restarts_under_load_complete_every_promised_job_unspent(
    database_url: str, drain: float
) -> None:
    async with asyncio.timeout(120):
        assert await restarts.run(database_url, 400, 16, 1, drain) == []
