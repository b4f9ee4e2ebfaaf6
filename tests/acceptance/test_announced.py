"""Results and dead letters, as a stranger reads them from the broker."""

from __future__ import annotations

import asyncio

from tests.acceptance.announced import announced
from tests.chaos.fleet import Kind
from tests.fakes.fixtures import BrokerAt, broker, emulator, fake

__all__ = ["broker", "emulator", "fake"]


async def test_each_result_is_announced_once_and_a_redrive_announces_again(
    database_url: str, broker: BrokerAt
) -> None:
    """The fleet brings a broker of its own; the fixture says of which kind, and skips where there is none."""
    kind: Kind = "emulator" if broker.kind == "emulator" else "fake"
    async with asyncio.timeout(120):
        assert await announced(database_url, kind, jobs=200)
