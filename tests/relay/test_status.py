"""What a relay says of itself in the database, and in its metrics."""

from __future__ import annotations

import grpc
import pytest
from prometheus_client import REGISTRY

from engine.pipeline import Registry
from engine.queries.explain import explain
from ops.harness.pubsub_fake import Fail
from ops.waiting import until
from tests.relay.relay_harness import RelayHarness


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"outrider_{name}", labels) or 0.0


async def test_a_job_is_explained_by_the_breaker_that_stands_before_it(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.status.REPORT_SECONDS", 0.02)

    async def said(code: str) -> bool:
        explained = await explain(relay_harness.conn, Registry([]), job_id, None)
        return code in [fact.code for fact in explained.facts]

    relay_harness.fake.inject(Fail(method="Publish", code=grpc.StatusCode.NOT_FOUND))
    [job_id] = await relay_harness.queue()
    async with relay_harness.relay():
        await until(lambda: said("breaker_open"))
        facts = await relay_harness.conn.execute(
            "SELECT topic, state, detail FROM relay_status ORDER BY topic"
        )
        assert [(topic, state) for topic, state, _ in await facts.fetchall()] == [
            ("dead-letters", "publishing"),
            ("jobs", "misconfigured"),
            ("results", "publishing"),
        ]
    await relay_harness.conn.execute("UPDATE relay_status SET updated_at = updated_at - interval '1 minute'")
    assert await said("no_relay")


async def test_what_leaves_is_counted_with_how_long_it_was_ready(relay_harness: RelayHarness) -> None:
    def counts() -> tuple[float, ...]:
        return (
            metric("published_messages_total", topic="jobs"),
            metric("publish_rows_sum", topic="jobs"),
            metric("publish_seconds_count", topic="jobs"),
            metric("job_stage_seconds_count", stage="publish"),
        )

    before, waited = counts(), metric("job_stage_seconds_sum", stage="publish")
    await relay_harness.queue(3)
    await relay_harness.conn.execute("UPDATE outbox SET ready_at = ready_at - interval '100 s'")
    async with relay_harness.relay():
        await relay_harness.all_left()
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [3, 3, 1, 3]
    assert 300 <= metric("job_stage_seconds_sum", stage="publish") - waited < 330
    assert metric("relay_cycled_timestamp_seconds", topic="jobs") > 0
