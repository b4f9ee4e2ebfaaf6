from __future__ import annotations

import pytest

from engine.pubsub import EMULATOR, names
from engine.settings import load
from relay.provision import open_clients, provision
from tests.fakes.fixtures import broker, emulator, fake
from tests.fakes.pubsub import FakePubSub
from tests.helpers import Conn
from tests.relay.post import Post

__all__ = ["broker", "emulator", "fake"]


@pytest.fixture
async def post(database_url: str, conn: Conn, fake: FakePubSub, monkeypatch: pytest.MonkeyPatch) -> Post:
    monkeypatch.setenv(EMULATOR, fake.host)
    settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": "test"})
    async with open_clients() as clients:
        async for _ in provision(clients, names(settings)):
            pass
    return Post(database_url, conn, fake, settings)
