"""Brokers for tests: `from tests.support.pubsub_brokers import …` in a conftest, and pytest knows them there."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from ops.harness.emulator import Emulator, Install, find, require
from ops.harness.pubsub_fake import FakePubSub

EMULATOR_HEAP = "256m"


@dataclass(frozen=True, slots=True)
class BrokerAt:
    """Where a broker listens ("127.0.0.1:port", for PUBSUB_EMULATOR_HOST), and a project that is the test's own."""

    host: str
    project: str
    kind: str
    """`fake` or `emulator`, for tests of what the emulator does otherwise."""


@pytest.fixture
async def fake() -> AsyncIterator[FakePubSub]:
    async with FakePubSub() as broker:
        yield broker


def installed_emulator() -> Install:
    """Where none is installed the test that asks is skipped, or fails if TEST_PUBSUB_EMULATOR=require."""
    if os.environ.get("TEST_PUBSUB_EMULATOR") != "require" and not find():
        pytest.skip("Google's Pub/Sub emulator is not installed")
    return require()


@pytest.fixture(scope="session")
async def emulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The host of Google's emulator, which all tests of the process share: each needs a project of its own."""
    log = tmp_path_factory.mktemp("emulator") / "log"
    async with Emulator(installed_emulator(), log, heap=EMULATOR_HEAP) as running:
        yield running.host


@pytest.fixture(params=["fake", "emulator"])
def broker(request: pytest.FixtureRequest) -> BrokerAt:
    """Each of them in turn."""
    found = request.getfixturevalue(request.param)
    host = found.host if isinstance(found, FakePubSub) else found
    return BrokerAt(host, f"test-{secrets.token_hex(4)}", request.param)
