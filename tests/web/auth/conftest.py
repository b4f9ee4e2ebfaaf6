from __future__ import annotations

from typing import Any

import pytest

from tests.support.web_harness import WebHarness


@pytest.fixture(scope="module")
async def door(shared_harness: WebHarness) -> Any:
    return await shared_harness.client(None)
