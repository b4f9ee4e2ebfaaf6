from collections.abc import AsyncIterator

import pytest

from tests.support.pubsub_brokers import BrokerAt
from tests.support.pubsub_clients import Clients, clients


@pytest.fixture
async def google(broker: BrokerAt) -> AsyncIterator[Clients]:
    """Google's clients of the broker."""
    async with clients(broker.host, broker.project) as made:
        yield made
