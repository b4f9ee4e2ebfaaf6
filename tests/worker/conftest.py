from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from engine.pubsub.client import EMULATOR
from ops.harness.pubsub_fake import FakePubSub
from tests.support.pubsub_brokers import BrokerAt
from tests.support.transport_harness import open_system
from tests.support.worker_harness import WorkerHarness
from tests.worker.subscription_harness import SubscriptionHarness


@pytest.fixture
async def subscription_harness(
    harness: WorkerHarness, fake: FakePubSub, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SubscriptionHarness]:
    monkeypatch.setenv(EMULATOR, fake.host)
    async with open_system(harness, BrokerAt(fake.host, f"test-{secrets.token_hex(4)}", "fake")) as system:
        yield SubscriptionHarness(system, fake)
