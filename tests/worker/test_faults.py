"""A statement that is wrong is no outage: its traceback is logged, and worker and maintenance live on, not ready."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from engine.errors import OutriderError
from engine.model import JobState
from ops.waiting import until
from tests.support.worker_harness import WorkerHarness, preset

RENAME = "ALTER TABLE outbox RENAME COLUMN {} TO {}"


@preset()
async def work(_job: Any, _run: Any) -> str:
    return "done"


async def test_a_worker_whose_claim_is_wrong_logs_a_traceback_and_claims_once_it_is_right(
    harness: WorkerHarness,
) -> None:
    job_id = await harness.enqueue()
    await harness.conn.execute(RENAME.format("claimed_at", "taken_at").encode())
    with capture_logs() as lines:
        async with harness.worker(work) as worker:
            failed = await until(lambda: seen(lines, "claim.failed"))
            with pytest.raises(OutriderError, match="claimed_at"):
                await worker.consumer.ready()
            await harness.conn.execute(RENAME.format("taken_at", "claimed_at").encode())
            [job] = await harness.ended(job_id)
            await worker.consumer.ready()
    assert job.state is JobState.COMPLETED
    assert (failed["log_level"], type(failed["exc_info"])) == ("error", psycopg.errors.UndefinedColumn)
    assert sum(line["event"] == "claim.failed" for line in lines) == 1


async def test_maintenance_whose_statement_is_wrong_logs_a_traceback_and_goes_on(
    harness: WorkerHarness,
) -> None:
    job_id = await harness.enqueue(delay_seconds=1)
    await harness.conn.execute(RENAME.format("ready_at", "due_at").encode())
    with capture_logs() as lines:
        async with harness.maintenance() as maintenance:
            failed = await until(lambda: seen(lines, "maintenance.failed"))

            async def unready() -> bool:
                """Whether readiness says why: other tasks may have failed before promote."""
                with pytest.raises(OutriderError, match="promote has not succeeded yet") as caught:
                    await maintenance.ready()
                return "ready_at" in str(caught.value)

            await until(unready)
            await harness.conn.execute(RENAME.format("due_at", "ready_at").encode())
            await harness.row("SELECT 1 FROM outbox WHERE status = 'ready' AND job_id = %s", job_id)
            await maintenance.ready()
    assert (failed["log_level"], type(failed["exc_info"])) == ("error", psycopg.errors.UndefinedColumn)


def seen(lines: list[Any], event: str) -> Any:
    return next((line for line in lines if line["event"] == event), None)
