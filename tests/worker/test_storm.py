"""Everything at once: outcomes of every kind, cancellations, redrives, lost leases and broken connections."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest

from engine.errors import PermanentError, StateConflict
from engine.model import Completed, JobState, Retry, Snoozed
from engine.moves import cancel, redrive
from tests.support.database import Conn
from tests.support.worker_harness import WorkerHarness, preset

pytestmark = pytest.mark.long

JOBS = 150
BLOWS = 40


@preset("storm", max_attempts=4)
async def storm(job: Any, run: Any) -> Any:
    rng = random.Random(f"{job.content} {run.attempt}")  # noqa: S311 - the same life each time

    async def effects(conn: Conn) -> None:
        await conn.execute("INSERT INTO ledger VALUES (%s)", [job.id])
        if rng.random() < 0.1:
            raise ValueError("not this time")

    await asyncio.sleep(rng.random() * 0.1)
    match rng.choice(["effects", "effects", "retry", "snooze", "raise", "fail", "wait"]):
        case "effects":
            return Completed("done", effects)
        case "retry":
            return Retry(rng.random() * 0.1, "again")
        case "snooze":
            return Snoozed(rng.random() * 0.1)
        case "raise":
            raise rng.choice([ValueError, SystemExit, asyncio.CancelledError])
        case "fail":
            raise PermanentError("no use")
        case _:
            await asyncio.sleep(rng.random())
            return Completed("late", effects)


async def blow(harness: WorkerHarness, rng: random.Random, ids: list[UUID]) -> None:
    victim = rng.choice(ids)
    match rng.choice(["terminate", "evict", "cancel", "redrive"]):
        case "terminate":
            await harness.conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name LIKE 'outrider %%' AND random() < %s",
                [rng.random()],
            )
        case "evict":
            await harness.conn.execute("DELETE FROM workers WHERE id = (SELECT max(id) FROM workers)")
        case "cancel" | "redrive" as asked:
            with suppress(StateConflict):  # it has ended, or has not yet
                await (cancel if asked == "cancel" else redrive)(harness.conn, victim, None)


async def test_the_invariants_hold_whatever_happens(harness: WorkerHarness) -> None:
    seed = os.environ.get("STORM_SEED", "1")
    rng = random.Random(seed)  # noqa: S311
    await harness.conn.execute("CREATE TABLE ledger (job_id uuid NOT NULL)")
    ids = [await harness.enqueue("storm", content=f"{seed}-{number}") for number in range(JOBS)]
    async with (
        harness.maintenance(lease=0.3),
        harness.worker(storm, lease=0.8),
        harness.worker(storm, lease=0.8),
        harness.worker(storm, lease=0.8, drain=0),
    ):
        for _ in range(BLOWS):
            await blow(harness, rng, ids)
            await asyncio.sleep(0.05)
        ended = await harness.ended(*ids)
    done = Counter(each.job_id for each in ended if each.state is JobState.COMPLETED)
    rows = await (await harness.conn.execute("SELECT job_id FROM ledger")).fetchall()
    assert Counter(job_id for (job_id,) in rows) == done
    assert 0 < len(done) < JOBS
