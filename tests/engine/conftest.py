"""A scene to run jobs on; whatever a test does there, the invariants hold at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.db import open_pool
from tests.engine.scene import Scene
from tests.helpers import Conn


@pytest.fixture
async def scene(database_url: str, conn: Conn) -> AsyncIterator[Scene]:
    async with (
        open_pool(database_url, name="test", size=10) as pool,
        open_pool(database_url, name="effects", size=10, strangers=True) as effects,
    ):
        scene = Scene(database_url, conn, pool, effects)
        yield scene
        assert await scene.broken() == []
