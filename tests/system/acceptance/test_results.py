"""Results and dead letters, as a stranger reads them from the broker."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.pubsub_brokers import BrokerAt
from tests.system.acceptance.results import publish_and_read
from tests.system.chaos.fleet import Kind

pytestmark = pytest.mark.long


async def test_each_result_is_announced_once_and_a_redrive_announces_again(
    database_url: str, broker: BrokerAt
) -> None:
    """The fleet brings a broker of its own; the fixture says of which kind, and skips where there is none."""
    kind: Kind = "emulator" if broker.kind == "emulator" else "fake"
    async with asyncio.timeout(120):
        assert await publish_and_read(database_url, kind, jobs=200)
