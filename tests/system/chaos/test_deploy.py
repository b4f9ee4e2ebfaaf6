"""A metadata model that changes in a rolling deploy costs no job anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ops.chaos import deploy

pytestmark = pytest.mark.long


@pytest.mark.parametrize("change", deploy.CHANGES)
async def test_jobs_of_two_versions_of_a_module_complete_unspent(
    database_url: str, tmp_path: Path, change: str
) -> None:
    async with asyncio.timeout(240):
        assert await deploy.run(database_url, tmp_path, deploy.CHANGES[change], 200) == []
