"""Children, pools, threads and an ORM in authors' code leave every worker alive until it is asked to stop."""

from __future__ import annotations

import asyncio

import pytest

from ops.chaos import neighbours

pytestmark = pytest.mark.long


async def test_no_worker_ends_by_itself_nor_later_than_it_may_nor_leaves_a_connection(
    database_url: str,
) -> None:
    async with asyncio.timeout(300):
        assert await asyncio.to_thread(neighbours.run, database_url, 200, 3.0) == []
