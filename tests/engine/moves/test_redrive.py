"""A redriven job is its owner's, in its old lane, and nothing of its old result is forgotten."""

from __future__ import annotations

import pytest

from engine.errors import JobNotFound
from engine.model import Attempt, JobState, Reason
from engine.moves import Ending, cancel, claim, finish, redrive
from engine.moves.enqueue import enqueue
from engine.queries import jobs
from engine.tables.outbox import Lane
from tests.support.database import Conn, fetchone, new, started, worker

ERROR = '{"type": "Boom", "message": "no", "attempt": 1}'
KEPT = (
    "state",
    "error",
    "error_fingerprint",
    "errors",
    "crashes",
    "execution_metadata",
    "started_at",
    "finished_at",
)


async def failed(conn: Conn, **asked: object) -> Attempt:
    """A job whose only attempt has failed it."""
    me = await worker(conn)
    attempt = await started(conn, me, **asked)
    ending = Ending(*attempt.key, JobState.FAILED, Reason.FAILED, None, ERROR, "f", '{"run_seconds": 1}', 1)
    await finish(conn, me, [ending])
    return attempt


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_another_owner_s_job_is_not_redriven(conn: Conn, state: JobState) -> None:
    if state is JobState.FAILED:
        job = (await failed(conn)).job
    else:
        job = await enqueue(conn, new())
        await cancel(conn, job.id, "ann")
    with pytest.raises(JobNotFound):
        await redrive(conn, job.id, "bob")
    assert await fetchone(conn, "SELECT state FROM job_results WHERE job_id = %s", job.id) == (state,)


async def test_the_old_result_goes_to_the_history_whole(conn: Conn) -> None:
    job_id = (await failed(conn)).job.id
    (result,) = await fetchone(conn, "SELECT to_jsonb(r) FROM job_results r WHERE job_id = %s", job_id)
    await redrive(conn, job_id, "ann")
    assert await fetchone(
        conn, "SELECT metadata FROM job_state_records WHERE job_id = %s AND reason = 'redriven'", job_id
    ) == ({"result": {name: result[name] for name in KEPT}},)
    assert (result["errors"], result["error_fingerprint"]) == (1, "f")


@pytest.mark.parametrize("priority", [1, 4])
async def test_a_redriven_job_is_as_urgent_as_it_was(conn: Conn, priority: int) -> None:
    attempt = await failed(conn, priority=priority)
    await redrive(conn, attempt.job.id, None)
    [again] = await claim(conn, await worker(conn), [Lane("p", priority)], 1)
    assert again.key == (attempt.job.id, 2)


async def test_a_redriven_job_shows_its_last_error_until_it_has_ended(conn: Conn) -> None:
    job_id = (await failed(conn)).job.id
    await redrive(conn, job_id, "ann")
    [seen] = await jobs.read(conn, [(job_id, "ann")])
    assert seen is not None
    assert (seen.state, seen.error) == (
        JobState.PENDING,
        {"type": "Boom", "message": "no", "attempt": 1},
    )
