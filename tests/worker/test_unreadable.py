"""Metadata that do not fit this worker's code are left to other workers, for a bounded time, and spend nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from engine.model import UNREADABLE_SECONDS, Failed, JobState, Unreadable
from engine.moves import cancel, promote, redrive
from engine.pipeline import Metadata
from engine.queries.audit import unreadable_runs
from engine.queries.explain import explain
from tests.support.database import Conn, counters, rewritten, trail
from tests.support.worker_harness import WorkerHarness, attempts, preset
from worker.outcome import within_patience

UNREADABLE = "unreadable to its worker"
WAITING = """
SELECT extract(epoch FROM o.run_at - a.timestamp)::float8
FROM outbox o JOIN job_state_records a ON a.job_id = o.job_id AND a.seq = o.version
WHERE o.status = 'waiting' AND o.attempt = """
"""The pause of the job that has been tried so often, in seconds."""


class Old(Metadata):
    speed: int = 1


class New(Old):
    colour: str = "red"


@preset("shop", metadata=Old)
def old(job: Any, _run: Any) -> Any:
    return ["old", job.metadata.speed]


@preset("shop", metadata=New)
def new(job: Any, _run: Any) -> Any:
    return ["new", job.metadata.speed, job.metadata.colour]


async def again(conn: Conn, after: float = 0) -> None:
    """Make the waiting jobs ready, as if `after` seconds had passed."""
    await conn.execute(
        "UPDATE job_state_records SET timestamp = timestamp - %s * interval '1 second'", [after]
    )
    await conn.execute("UPDATE outbox SET run_at = now() WHERE status = 'waiting'")
    assert await promote(conn, 100)


async def test_a_new_job_on_an_old_worker_waits_unspent_for_a_new_one(harness: WorkerHarness) -> None:
    before = attempts("shop", "unreadable")
    job_id = await harness.enqueue("shop", metadata={"colour": "blue"})
    async with harness.worker(old):
        [seconds] = await harness.row(f"{WAITING}1")
        assert seconds == pytest.approx(1, abs=0.1)
        seen = await harness.view(job_id)
        assert seen.error == {
            "type": "ValidationError",
            "message": "metadata: colour: Extra inputs are not permitted",
            "attempt": 1,
        }
        assert (seen.state, await counters(harness.conn, job_id)) == (JobState.PENDING, (1, 0, 0))
    assert attempts("shop", "unreadable") == before + 1
    async with harness.worker(new), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert (job.state, job.output, job.error) == (JobState.COMPLETED, '["new",1,"blue"]', None)
    assert [reason for *_, reason in await trail(harness.conn, job_id)] == [
        "enqueued",
        "claimed",
        UNREADABLE,
        "claimed",
        "completed",
    ]


async def test_the_job_s_neighbours_run_meanwhile(harness: WorkerHarness) -> None:
    ids = [await harness.enqueue("shop", metadata=given) for given in ({"colour": "blue"}, {"speed": 3}, {})]
    async with harness.worker(old, slots=1):
        outputs = [job.output for job in await harness.ended(*ids[1:])]
    assert outputs == ['["old",3]', '["old",1]']
    assert (await harness.view(ids[0])).state is JobState.PENDING


async def test_the_job_is_left_alone_longer_each_time(harness: WorkerHarness) -> None:
    await harness.enqueue("shop", metadata={"colour": "blue"})
    async with harness.worker(old):
        for attempt in (1, 2, 3):
            [seconds] = await harness.row(f"{WAITING}{attempt}")
            assert seconds == pytest.approx(attempt, abs=0.1)
            await again(harness.conn)
        await harness.row(f"{WAITING}4")


async def test_a_job_that_no_worker_can_read_fails_after_a_quarter_of_an_hour(harness: WorkerHarness) -> None:
    job_id = await harness.enqueue("shop", metadata={"colour": "blue"})
    async with harness.worker(old):
        await harness.row(f"{WAITING}1")
        await again(harness.conn, UNREADABLE_SECONDS - 60)
        await harness.row(f"{WAITING}2")
        await again(harness.conn, 60)
        [job] = await harness.ended(job_id)
    assert job.error
    assert (job.state, await counters(harness.conn, job_id)) == (JobState.FAILED, (3, 1, 0))
    assert job.error["message"] == "metadata: colour: Extra inputs are not permitted"


async def test_a_redriven_job_has_the_whole_time_again(harness: WorkerHarness) -> None:
    job_id = await harness.enqueue("shop", metadata={"colour": "blue"})
    async with harness.worker(old):
        await harness.row(f"{WAITING}1")
        await again(harness.conn, UNREADABLE_SECONDS)
        await harness.ended(job_id)
        assert await redrive(harness.conn, job_id, "ann")
        await harness.row(f"{WAITING}3")


async def test_a_run_of_unreadable_attempts_begins_after_anything_else(harness: WorkerHarness) -> None:
    async def tried(*reasons: str) -> UUID:
        job_id = await harness.enqueue("shop")
        for seq, reason in enumerate(reasons, start=1):
            await harness.conn.execute(
                "INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason, timestamp)"
                " VALUES (%s, %s, 'PENDING', 1, %s, now() - %s * interval '1 minute')",
                [job_id, seq, reason, 100 - seq],
            )
        return job_id

    none = await tried()
    one = await tried("claimed", UNREADABLE)
    two = await tried("claimed", UNREADABLE, "claimed", "error", "claimed", UNREADABLE, "claimed", UNREADABLE)
    runs = await unreadable_runs(harness.conn, [none, one, two])
    assert [(runs[each].attempts, round(runs[each].seconds / 60)) for each in (none, one, two)] == [
        (0, 0),
        (1, 98),
        (2, 94),
    ]
    await harness.conn.execute("TRUNCATE jobs, outbox, job_state_records")


async def test_an_unreadable_job_that_waits_can_be_cancelled(
    harness: WorkerHarness,
) -> None:
    job_id = await harness.enqueue("shop", metadata={"colour": "blue"})
    async with harness.worker(old):
        await harness.row(f"{WAITING}1")
        assert await cancel(harness.conn, job_id, "ann") is JobState.CANCELLED
        [job] = await harness.ended(job_id)
    assert job.state is JobState.CANCELLED


async def test_explain_says_what_an_unreadable_job_waits_for(harness: WorkerHarness) -> None:
    job_id = await harness.enqueue("shop", metadata={"colour": "blue"})
    async with harness.worker(old):
        await harness.row(f"{WAITING}1")
        said = await explain(harness.conn, {"shop": old}, job_id, "ann")
    details = {fact.code: fact.detail for fact in said.facts}
    assert details["unreadable"].endswith("fails 15 minutes after the first such attempt")
    assert "colour: Extra inputs" in details["last_error"]


async def test_metadata_that_no_code_can_read_fail_the_job_at_once(harness: WorkerHarness) -> None:
    good = await harness.enqueue("shop", metadata={"speed": 3})
    bad = await harness.enqueue("shop", metadata={"speed": 3})
    await rewritten(harness.conn, bad, '{"speed": 1e131071}')
    async with harness.worker(old):
        first, second = await harness.ended(good, bad)
    assert (first.state, second.state) == (JobState.COMPLETED, JobState.FAILED)


async def test_the_jobs_of_a_preset_that_was_removed_wait_and_are_explained(harness: WorkerHarness) -> None:
    job_id = await harness.enqueue("shop")
    other = await harness.enqueue("other")
    async with harness.worker(preset("other")(lambda _job, _run: None)):
        await harness.ended(other)
        said = await explain(harness.conn, {}, job_id, "ann")
        assert said.summary == "no live worker runs the preset shop"
    assert await counters(harness.conn, job_id) == (0, 0, 0)
    async with harness.worker(old):
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED


@pytest.mark.parametrize(
    ("releases", "seconds", "delay"),
    [
        (0, 0, 1),
        (1, 1, 2),
        (4, 20, 5),
        (29, 435, 30),
        (500, UNREADABLE_SECONDS - 1, 30),
        (9, UNREADABLE_SECONDS, None),
    ],
)
def test_an_unreadable_job_waits_longer_each_time_and_fails_at_last(
    releases: int, seconds: float, delay: float | None
) -> None:
    outcome = within_patience(Unreadable("no"), releases, seconds)
    assert outcome == (Failed("no") if delay is None else Unreadable("no", delay))
