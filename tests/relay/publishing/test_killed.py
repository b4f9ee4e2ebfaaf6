"""A relay process that is killed: what it had reserved is published by another within 15 seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ops.harness.pubsub_fake import Delay
from ops.waiting import until
from tests.relay.relay_harness import JOBS, RESULTS, RelayHarness
from tests.system.chaos.fleet import Fleet

LEAVES_SECONDS = 15.0


@pytest.mark.long
async def test_the_rows_of_a_killed_relay_leave_within_15_seconds(
    relay_harness: RelayHarness, tmp_path: Path
) -> None:
    fleet = Fleet(
        relay_harness.url,
        relay_harness.fake.host,
        tmp_path,
        PUBSUB_PROJECT="test",
        PIPELINES="tests.system.chaos.pipelines",
    )
    try:
        slow = relay_harness.fake.inject(Delay(method="Publish", seconds=4))
        ids, events = (
            await relay_harness.queue(40, preset="entry"),
            await relay_harness.write_events(*[b"x"] * 40),
        )
        victim = await fleet.start("relay")
        await until(lambda: relay_harness.has_reserved(80))
        await until(lambda: slow.hits >= 2)
        await victim.kill()
        killed = time.monotonic()
        relay_harness.fake.lift(slow)
        assert relay_harness.sent(JOBS) + relay_harness.sent(RESULTS) == []
        heir = await fleet.start("relay")
        await relay_harness.all_left()
        assert time.monotonic() - killed < LEAVES_SECONDS
        assert not heir.loud()
    finally:
        await fleet.aclose()
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert sorted(relay_harness.sent(RESULTS)) == sorted(events)
