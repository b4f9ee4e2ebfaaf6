"""A connection on which nothing passes any more, as behind a dead proxy or a firewall that has forgotten it."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.pubsub.client import EMULATOR
from ops.waiting import until
from tests.relay.relay_harness import RelayHarness
from tests.support.tcp_proxy import tcp_proxy


@pytest.mark.long
async def test_a_publisher_leaves_a_connection_that_has_fallen_silent(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are still accepted, so that TCP notices nothing."""
    async with tcp_proxy(int(relay_harness.fake.host.rpartition(":")[2])) as proxy:
        monkeypatch.setenv(EMULATOR, proxy.host)
        async with relay_harness.relay():
            [first] = await relay_harness.write_events(b"x")
            await until(lambda: relay_harness.has_sent(first))
            await asyncio.sleep(0.5)
            proxy.forget()
            began = time.monotonic()
            await relay_harness.write_events(b"a", b"b")
            await relay_harness.all_left(400)
            print(f"left after {time.monotonic() - began:.0f} s")
