"""A stage for each transport; at its end the world was told what happened, and the invariants hold."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from engine.pubsub import EMULATOR
from tests.engine.conftest import scene
from tests.engine.scene import Scene
from tests.fakes.fixtures import BrokerAt, broker, emulator, fake
from tests.fakes.pubsub import FakePubSub
from tests.transports.stage import Stage, open_stage
from tests.transports.told import check_told, check_woken, watch

__all__ = ["broker", "emulator", "fake", "scene"]


@pytest.fixture(params=["postgres", "fake", "emulator"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BrokerAt | None:
    """The broker, in pubsub mode."""
    monkeypatch.setattr("relay.drain.MAX_IDLE_SECONDS", 0.05)
    if request.param == "postgres":
        return None
    found = request.getfixturevalue(request.param)
    host = found.host if isinstance(found, FakePubSub) else found
    monkeypatch.setenv(EMULATOR, host)
    return BrokerAt(host, f"test-{secrets.token_hex(4)}", request.param)


@pytest.fixture
async def stage(scene: Scene, transport: BrokerAt | None) -> AsyncIterator[Stage]:
    async with open_stage(scene, transport) as stage:
        await watch(stage)
        async with stage.upkeep():
            yield stage
            await check_told(stage)
        await check_woken(stage)
