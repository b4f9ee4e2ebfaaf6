from __future__ import annotations

import pytest

from engine.pubsub.client import EMULATOR, names
from engine.settings import load
from ops.harness.pubsub_fake import FakePubSub
from relay.provision.apply import open_clients, provision
from tests.relay.relay_harness import RelayHarness
from tests.support.database import Conn


@pytest.fixture
async def relay_harness(
    database_url: str, conn: Conn, fake: FakePubSub, monkeypatch: pytest.MonkeyPatch
) -> RelayHarness:
    monkeypatch.setenv(EMULATOR, fake.host)
    settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": "test"})
    async with open_clients() as clients:
        async for _ in provision(clients, names(settings)):
            pass
    return RelayHarness(database_url, conn, fake, settings)
