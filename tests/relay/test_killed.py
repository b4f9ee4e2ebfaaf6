"""A relay process that is killed: what it had reserved is published by another within 15 seconds."""

from __future__ import annotations

import time
from pathlib import Path

from tests.chaos.fleet import Fleet
from tests.engine.scene import until
from tests.fakes.clients import eventually
from tests.fakes.pubsub import Delay
from tests.relay.post import JOBS, RESULTS, Post

LEAVES_SECONDS = 15.0


async def test_the_rows_of_a_killed_relay_leave_within_15_seconds(post: Post, tmp_path: Path) -> None:
    fleet = Fleet(
        post.url, post.fake.host, tmp_path, PUBSUB_PROJECT="test", PIPELINES="tests.chaos.pipelines"
    )
    try:
        slow = post.fake.inject(Delay(method="Publish", seconds=4))
        ids, events = await post.queue(40, preset="entry"), await post.tell(*[b"x"] * 40)
        victim = await fleet.start("relay")
        await until(lambda: post.has_reserved(80))
        await eventually(lambda: slow.hits >= 2)
        await victim.kill()
        killed = time.monotonic()
        post.fake.lift(slow)
        assert post.sent(JOBS) + post.sent(RESULTS) == []
        heir = await fleet.start("relay")
        await post.all_left()
        assert time.monotonic() - killed < LEAVES_SECONDS
        assert not heir.loud()
    finally:
        await fleet.aclose()
    assert sorted(post.jobs_sent()) == sorted(ids)
    assert sorted(post.sent(RESULTS)) == sorted(events)
