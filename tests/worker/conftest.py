from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from engine.pubsub import EMULATOR
from tests.engine.conftest import scene
from tests.engine.scene import Scene
from tests.fakes.fixtures import BrokerAt, fake
from tests.fakes.pubsub import FakePubSub
from tests.transports.stage import open_stage
from tests.worker.site import Site

__all__ = ["fake", "scene"]


@pytest.fixture
async def site(scene: Scene, fake: FakePubSub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv(EMULATOR, fake.host)
    async with open_stage(scene, BrokerAt(fake.host, f"test-{secrets.token_hex(4)}", "fake")) as stage:
        yield Site(stage, fake)
