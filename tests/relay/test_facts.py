"""What a relay says of itself in the database, and in its metrics."""

from __future__ import annotations

import grpc
import pytest
from prometheus_client import REGISTRY

from engine.explain import explain
from engine.pipeline import Registry
from tests.engine.scene import until
from tests.fakes.pubsub import Fail
from tests.relay.post import Post


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"outrider_{name}", labels) or 0.0


async def test_a_job_is_explained_by_the_breaker_that_stands_before_it(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.relays.TELL_SECONDS", 0.02)

    async def said(code: str) -> bool:
        explained = await explain(post.conn, Registry([]), job_id, None)
        return code in [fact.code for fact in explained.facts]

    post.fake.inject(Fail(method="Publish", code=grpc.StatusCode.NOT_FOUND))
    [job_id] = await post.queue()
    async with post.relay():
        await until(lambda: said("breaker_open"))
        facts = await post.conn.execute("SELECT topic, state, detail FROM relay_facts ORDER BY topic")
        assert [(topic, state) for topic, state, _ in await facts.fetchall()] == [
            ("dead-letters", "publishing"),
            ("jobs", "misconfigured"),
            ("results", "publishing"),
        ]
    await post.conn.execute("UPDATE relay_facts SET updated_at = updated_at - interval '1 minute'")
    assert await said("no_relay")


async def test_what_leaves_is_counted_with_how_long_it_was_ready(post: Post) -> None:
    def counts() -> tuple[float, ...]:
        return (
            metric("published_messages_total", topic="jobs"),
            metric("publish_rows_sum", topic="jobs"),
            metric("publish_seconds_count", topic="jobs"),
            metric("job_stage_seconds_count", stage="publish"),
        )

    before, waited = counts(), metric("job_stage_seconds_sum", stage="publish")
    await post.queue(3)
    await post.conn.execute("UPDATE outbox SET ready_at = ready_at - interval '100 s'")
    async with post.relay():
        await post.all_left()
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [3, 3, 1, 3]
    assert 300 <= metric("job_stage_seconds_sum", stage="publish") - waited < 330
    assert metric("relay_cycled_timestamp_seconds", topic="jobs") > 0
