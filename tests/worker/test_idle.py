"""A worker and a relay that were idle for minutes run the next jobs at once, on brokers with a ping policy."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from engine.pubsub.client import EMULATOR
from tests.support.pubsub_brokers import BrokerAt
from tests.support.transport_harness import open_system
from tests.support.worker_harness import WorkerHarness
from tests.worker.subscription_harness import ledger

IDLE_SECONDS = 300.0
JOBS = 20


@pytest.mark.long
async def test_after_five_idle_minutes_each_job_starts_within_a_second(
    harness: WorkerHarness, broker: BrokerAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMULATOR, broker.host)
    ran, work = ledger()
    waited: list[timedelta] = []
    with capture_logs() as logs:
        async with open_system(harness, broker) as system, system.maintenance(), system.worker(work):
            await system.harness.ended(await system.enqueue())
            await asyncio.sleep(IDLE_SECONDS)
            for _ in range(JOBS):
                job_id = await system.enqueue()
                [job] = await harness.ended(job_id)
                assert job.started_at
                waited.append(job.started_at - job.created_at)
    print(broker.kind, [round(each.total_seconds(), 3) for each in waited])
    assert max(waited) < timedelta(seconds=1)
    assert [line for line in logs if line["event"].startswith(("stream.", "breaker."))] == []
    assert set(ran.values()) == {1}
