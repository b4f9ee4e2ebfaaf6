"""Reading jobs: who sees what, in which order, and when it counts as changed."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from engine.model import Job, JobState
from engine.moves import cancel, claim, finish, promote, release
from engine.moves.enqueue import enqueue
from engine.queries import audit, jobs
from engine.queries.jobs import JobView
from engine.tables.progress import Progress, report
from tests.engine.moves.test_moves import after_error, completed, failed
from tests.support.database import LANES, Conn, new, started, worker


async def view(conn: Conn, job: Job) -> JobView:
    [found] = await jobs.read(conn, [(job.id, None)])
    assert found is not None
    return found


async def test_an_owner_reads_his_own_job_and_an_operator_any(conn: Conn) -> None:
    job = await enqueue(conn, new())
    asks = [(job.id, "ann"), (job.id, "bob"), (job.id, None), (uuid4(), "ann"), (job.id, "ann")]
    found = await jobs.read(conn, asks)
    assert [v and v.job_id for v in found] == [job.id, None, job.id, None, job.id]


async def test_a_new_job_shows_what_was_asked(conn: Conn) -> None:
    job = await enqueue(conn, new(metadata={"b": 1, "a": [None]}, priority=3, max_attempts=7))
    seen = await view(conn, job)
    assert (seen.state, seen.version, seen.attempt, seen.priority) == (JobState.PENDING, 0, 0, 3)
    assert (seen.max_attempts, seen.timeout_seconds, seen.content) == (7, None, "text")
    assert (seen.started_at, seen.completed_at, seen.error, seen.output) == (None, None, None, None)
    assert seen.updated_at >= seen.created_at


async def test_progress_shows_only_while_its_attempt_is_leased(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await report(conn, [Progress(attempt.job.id, 1, 4, 0.5, 'half "way"')])
    seen = await view(conn, attempt.job)
    assert (seen.fraction, seen.message, seen.progress_n) == (0.5, 'half "way"', 4)
    await report(conn, [Progress(attempt.job.id, 1, 3, 0.4, "late")])
    assert (await view(conn, attempt.job)).fraction == 0.5
    await release(conn, me, [after_error(attempt)])
    assert (await view(conn, attempt.job)).fraction is None
    await promote(conn)
    await claim(conn, me, LANES, 1)
    assert (await view(conn, attempt.job)).fraction is None


async def test_an_error_shows_while_a_retry_waits_and_is_gone_once_completed(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await release(conn, me, [after_error(attempt)])
    await promote(conn)
    [again] = await claim(conn, me, LANES, 1)
    seen = await view(conn, attempt.job)
    assert seen.state is JobState.PROCESSING
    assert seen.error == {"type": "Boom", "message": "no", "attempt": 1}
    await finish(conn, me, [completed(again)])
    assert (await view(conn, attempt.job)).error is None


@pytest.mark.parametrize("owner", ["ann", None])
async def test_pages_are_newest_first_and_hold_what_was_asked_for(conn: Conn, owner: str | None) -> None:
    me = await worker(conn)
    ends = {}
    for state in JobState:
        for preset in ("p", "q"):
            ends[state, preset] = await enqueue(conn, new(preset=preset))
    lanes = [lane._replace(preset=preset) for lane in LANES for preset in ("p", "q")]
    await conn.execute(
        "UPDATE outbox SET status = 'waiting' WHERE job_id = ANY (%s)",
        [[job.id for (state, _), job in ends.items() if state in (JobState.PENDING, JobState.CANCELLED)]],
    )
    attempts = {attempt.job.id: attempt for attempt in await claim(conn, me, lanes, 100)}
    for (state, _), job in ends.items():
        if state is JobState.COMPLETED:
            await finish(conn, me, [completed(attempts[job.id])])
        elif state is JobState.FAILED:
            await finish(conn, me, [failed(attempts[job.id])])
        elif state is JobState.CANCELLED:
            await cancel(conn, job.id, None)
    if owner:
        await enqueue(conn, new(user_id="bob"))
    for asked in (None, *JobState):
        for kind in (None, "p", "q"):
            wanted = [
                job.id
                for (state, name), job in reversed(ends.items())
                if asked in (None, state) and kind in (None, name)
            ]
            page = await jobs.page(conn, owner=owner, state=asked, preset=kind)
            assert [v.job_id for v in page] == wanted
            assert all(v.content is None and v.output is None for v in page)
            below = await jobs.page(conn, owner=owner, state=asked, preset=kind, before=wanted[0])
            assert [v.job_id for v in below] == wanted[1:]
            skipped = await jobs.page(conn, owner=owner, state=asked, preset=kind, offset=1, limit=1)
            assert [v.job_id for v in skipped] == wanted[1:2]


@pytest.mark.parametrize("few", [0, 3, 1000], ids=["none are few", "the rare are few", "all are few"])
async def test_a_page_is_the_same_however_rare_its_preset_is_in_its_state(
    conn: Conn, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FEW", few)
    me = await worker(conn)
    order = [await enqueue(conn, new(preset=preset)) for preset in "ppqppqpppqpp"]
    lanes = [lane._replace(preset=preset) for lane in LANES for preset in ("p", "q")]
    attempts = {attempt.job.id: attempt for attempt in await claim(conn, me, lanes, 100)}
    for job in order[1:8]:
        await finish(conn, me, [completed(attempts[job.id])])
    await release(conn, me, [after_error(attempts[job.id]) for job in order[8:11]])
    states = [JobState.PROCESSING] + [JobState.COMPLETED] * 7 + [JobState.PENDING] * 3 + [JobState.PROCESSING]
    for state in JobState:
        for preset in ("p", "q", "r"):
            wanted = [
                job.id
                for job, its_state in reversed([*zip(order, states, strict=True)])
                if job.preset == preset and its_state is state
            ]
            asked: dict[str, Any] = {"owner": "ann", "state": state, "preset": preset}
            for offset, limit in ((0, 100), (0, 2), (1, 1), (2, 100)):
                page = await jobs.page(conn, **asked, offset=offset, limit=limit)
                assert [v.job_id for v in page] == wanted[offset : offset + limit]
            for place, job_id in enumerate(wanted):
                page = await jobs.page(conn, **asked, before=job_id)
                assert [v.job_id for v in page] == wanted[place + 1 :]
            assert await jobs.page(conn, **(asked | {"owner": "bob"})) == []


async def test_a_pulse_changes_with_the_version_and_with_progress(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    job_id = attempt.job.id
    assert await jobs.versions(conn, [job_id, uuid4()]) == {job_id: (1, 0, JobState.PROCESSING)}
    await report(conn, [Progress(job_id, 1, 2, 0.1, "")])
    assert await jobs.versions(conn, [job_id]) == {job_id: (1, 2, JobState.PROCESSING)}
    await finish(conn, me, [completed(attempt)])
    assert await jobs.versions(conn, [job_id]) == {job_id: (2, 0, JobState.COMPLETED)}


async def test_history_is_the_owners_and_resumes_after_a_seq(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await finish(conn, me, [completed(attempt)])
    job_id = attempt.job.id
    rows = await audit.history(conn, job_id, "ann")
    assert rows is not None
    assert [(r.seq, r.from_state, r.to_state) for r in rows] == [
        (0, None, JobState.PENDING),
        (1, JobState.PENDING, JobState.PROCESSING),
        (2, JobState.PROCESSING, JobState.COMPLETED),
    ]
    assert [r.seq for r in await audit.history(conn, job_id, None, after=1) or []] == [2]
    assert await audit.history(conn, job_id, "ann", after=2) == []
    assert await audit.history(conn, job_id, "bob") is None
