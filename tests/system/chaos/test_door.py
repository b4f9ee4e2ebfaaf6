"""Strangers cannot keep a web process from answering, with few descriptors neither."""

from __future__ import annotations

import asyncio
import math

import pytest

from ops.chaos import door

pytestmark = pytest.mark.long


@pytest.mark.parametrize("descriptors", [None, 1024])
async def test_health_is_answered_while_strangers_send_bombs_and_silence(
    database_url: str, monkeypatch: pytest.MonkeyPatch, descriptors: int | None
) -> None:
    # How fast depends on the machine, which the tests share; the command measures it.
    monkeypatch.setattr(door, "P99_MILLISECONDS", math.inf)
    async with asyncio.timeout(300):
        assert await asyncio.to_thread(door.run, database_url, 10.0, 5000, descriptors) == []
