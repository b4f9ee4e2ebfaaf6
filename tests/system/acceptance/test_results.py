"""Results and dead letters, as a stranger reads them from the broker."""

from __future__ import annotations

import asyncio

from tests.support.pubsub_brokers import BrokerAt
from tests.system.acceptance.results import announced
from tests.system.chaos.fleet import Kind


async def test_each_result_is_announced_once_and_a_redrive_announces_again(
    database_url: str, broker: BrokerAt
) -> None:
    """The fleet brings a broker of its own; the fixture says of which kind, and skips where there is none."""
    kind: Kind = "emulator" if broker.kind == "emulator" else "fake"
    async with asyncio.timeout(120):
        assert await announced(database_url, kind, jobs=200)
