"""An idle worker is told of a job by the commit that enqueues it: here it never looks by itself."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from engine import NewJob, enqueue
from engine.model import JobState
from engine.storage import listener
from tests.support.worker_harness import WorkerHarness, preset
from worker import consumer

ASKED = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'outrider listener' AND state = 'idle' AND strpos(query, 'hints_wanted_until') > 0"
)


@pytest.mark.parametrize("how", ["async", "synchronous", "sql"])
async def test_an_idle_worker_starts_what_is_enqueued_by(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(consumer, "MIN_IDLE_SECONDS", 3600.0)
    monkeypatch.setattr(consumer, "MAX_IDLE_SECONDS", 3600.0)
    monkeypatch.setattr(listener, "SOON", ())
    new = NewJob(user_id="ann", preset="p", content="text")

    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    async with harness.worker(work, lease=60):
        # The first heartbeat and the listener make the worker look. They come before.
        await harness.row("SELECT 1 FROM workers")
        await harness.row(ASKED)
        async with await psycopg.AsyncConnection.connect(harness.url) as conn:
            for _ in range(3):
                if how == "async":
                    job_id = (await enqueue(conn, new)).id
                elif how == "synchronous":
                    with psycopg.connect(harness.url) as plain:
                        job_id = enqueue(plain, new).id
                else:
                    cursor = await conn.execute("SELECT outrider_enqueue('ann', 'p', 'text')")
                    [(job_id,)] = await cursor.fetchall()
                await conn.commit()
                [job] = await harness.ended(job_id)
                assert job.state is JobState.COMPLETED
