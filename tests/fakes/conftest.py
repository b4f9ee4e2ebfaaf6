from collections.abc import AsyncIterator

import pytest

from tests.fakes.clients import Clients, clients
from tests.fakes.fixtures import BrokerAt, broker, emulator, fake

__all__ = ["broker", "emulator", "fake", "google"]


@pytest.fixture
async def google(broker: BrokerAt) -> AsyncIterator[Clients]:
    """Google's clients of the broker."""
    async with clients(broker.host, broker.project) as made:
        yield made
