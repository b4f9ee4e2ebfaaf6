"""A stage for each transport; at its end the world was told what happened, and the invariants hold."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from engine.pubsub.client import EMULATOR
from ops.harness.pubsub_fake import FakePubSub
from tests.support.pubsub_brokers import BrokerAt
from tests.support.transport_harness import TransportHarness, open_system
from tests.support.worker_harness import WorkerHarness
from tests.system.transports.messages import check_messages, check_wake_ups, watch


@pytest.fixture(params=["postgres", "fake", "emulator"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BrokerAt | None:
    """The broker, in pubsub mode."""
    monkeypatch.setattr("relay.publishing.publish_loop.MAX_IDLE_SECONDS", 0.05)
    if request.param == "postgres":
        return None
    found = request.getfixturevalue(request.param)
    host = found.host if isinstance(found, FakePubSub) else found
    monkeypatch.setenv(EMULATOR, host)
    return BrokerAt(host, f"test-{secrets.token_hex(4)}", request.param)


@pytest.fixture
async def system(harness: WorkerHarness, transport: BrokerAt | None) -> AsyncIterator[TransportHarness]:
    async with open_system(harness, transport) as system:
        await watch(system)
        async with system.maintenance():
            yield system
            await check_messages(system)
        await check_wake_ups(system)
