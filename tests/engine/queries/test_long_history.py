"""A job that snoozes each second for a day has 170,000 transitions. It is read as cheaply as any other job."""

from __future__ import annotations

import json
import re
from uuid import UUID

import pytest

from engine.model import Attempt, Job, JobState, Reason
from engine.moves import cancel, finish, promote, recorded, redrive, release
from engine.moves.claim import claim
from engine.moves.enqueue import enqueue
from engine.moves.finish import OUTCOMES, RECORDED
from engine.moves.release import Release
from engine.queries import audit, jobs
from engine.queries.audit import HISTORY, LATEST
from engine.queries.explain import explain
from engine.queries.explain_query import COUNTED, ERRORS_SHOWN, SNAPSHOT
from engine.queries.jobs import READ, VERSIONS, JobView
from engine.storage.literals import array, bare_array
from engine.tables.relay_status import SILENT_SECONDS
from tests.conftest import Connect
from tests.engine.moves.test_moves import after_error, failed
from tests.engine.test_statements import buffers
from tests.support.database import LANES, Conn, fetchone, new, started, worker

SNOOZES = 20_000

# The rows that the moves would write: a claim and a snooze, in turns.
SNOOZE: str = """
WITH moved AS (
    UPDATE outbox SET version = version + 2 * %(times)s, attempt = attempt + %(times)s
    WHERE job_id = %(id)s AND status <> 'leased'
    RETURNING job_id, version - 2 * %(times)s AS version, attempt - %(times)s AS attempt
)
INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
SELECT job_id, version + 2 * n - back, (ARRAY['PROCESSING', 'PENDING'])[back + 1]::job_state,
       (ARRAY['PENDING', 'PROCESSING'])[back + 1]::job_state, attempt + n, (ARRAY['snoozed', 'claimed'])[back + 1],
       CASE back WHEN 1 THEN '{"worker": 1}'::jsonb END
FROM moved CROSS JOIN generate_series(1, %(times)s) n CROSS JOIN generate_series(0, 1) back
"""


async def snooze(conn: Conn, job_id: UUID, times: int = SNOOZES) -> None:
    """Let a pending job be claimed and snoozed `times` times."""
    await conn.execute(SNOOZE.encode(), {"id": job_id, "times": times})


async def erred(conn: Conn, worker_id: int) -> Attempt:
    """An attempt that ended in an error; its job waits."""
    attempt = await started(conn, worker_id)
    await release(conn, worker_id, [after_error(attempt)])
    return attempt


async def again(conn: Conn, worker_id: int) -> Attempt:
    """The next attempt of the one unfinished job."""
    await promote(conn)
    [attempt] = await claim(conn, worker_id, LANES, 1)
    return attempt


async def view(conn: Conn, job: Job) -> JobView:
    [found] = await jobs.read(conn, [(job.id, None)])
    assert found is not None
    return found


def reads(job_id: UUID, attempt: int) -> dict[str, dict[str, object]]:
    """Every statement that reads what a job's history is part of, as it is asked of this job."""
    page: dict[str, object] = {"id": job_id, "owner": None, "limit": 100}
    explained: dict[str, object] = {"counted": COUNTED, "errors": ERRORS_SHOWN, "silent": SILENT_SECONDS}
    outcome: dict[str, object] = {
        "id": bare_array([job_id]),
        "attempt": bare_array([attempt]),
        "outcomes": OUTCOMES,
    }
    listed: dict[str, object] = {
        "owner": "ann", "before": jobs._LAST, "zero": jobs._ZERO, "preset": None, "limit": 20, "offset": 0,
    }  # fmt: skip
    return {
        READ.replace("%s::uuid", "%(ids)s::uuid").replace("%s::text", "%(owners)s::text"): {
            "ids": array([job_id]),
            "owners": array([None]),
        },
        jobs._PAGE_HEAD + jobs._OWNED + jobs._PAGE_TAIL: listed,
        VERSIONS.replace("%s", "%(ids)s"): {"ids": array([job_id])},
        SNAPSHOT: {"id": job_id, "owner": None} | explained,
        HISTORY: page | {"after": -1},
        LATEST: page,
        RECORDED: outcome,
    }


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "pooled"])
async def test_reading_a_job_does_not_cost_more_the_longer_its_history_is(
    connect: Connect, pinned: bool
) -> None:
    conn = await connect(pinned=pinned)
    attempt = await erred(conn, await worker(conn))
    job_id = attempt.job.id
    await snooze(conn, job_id, 60)
    await conn.execute("VACUUM ANALYZE")
    before = {
        statement: await buffers(conn, statement, asked) for statement, asked in reads(job_id, 61).items()
    }
    await snooze(conn, job_id)
    await conn.execute("VACUUM ANALYZE")
    for statement, asked in reads(job_id, 61 + SNOOZES).items():
        # An index that gets two levels deeper costs each look-up two pages.
        assert await buffers(conn, statement, asked) <= before[statement] + 20, statement


async def test_the_latest_errors_are_found_behind_any_number_of_snoozes(conn: Conn) -> None:
    me = await worker(conn)
    job = (await erred(conn, me)).job
    await snooze(conn, job.id, 50)
    assert (await view(conn, job)).error == {"type": "Boom", "message": "no", "attempt": 1}
    second = await again(conn, me)
    later = {"type": "Boom", "message": "still no", "attempt": second.number}
    await release(conn, me, [after_error(second)._replace(error=json.dumps(later))])
    await snooze(conn, job.id, 50)
    assert (await view(conn, job)).error == later
    facts = [fact for fact in (await explain(conn, {}, job.id, None)).facts if "error" in fact.code]
    assert [fact.code for fact in facts] == ["last_error", "earlier_error"]
    assert [re.findall(r"attempt (\d+)", fact.detail) for fact in facts] == [["52"], ["1"]]


async def test_a_job_keeps_its_latest_error_through_a_redrive_and_a_cancellation(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await finish(conn, me, [failed(attempt)])
    error = (await view(conn, attempt.job)).error
    assert error is not None
    await redrive(conn, attempt.job.id, None)
    await snooze(conn, attempt.job.id, 10)
    assert (await view(conn, attempt.job)).error == error
    await cancel(conn, attempt.job.id, None)
    seen = await view(conn, attempt.job)
    assert (seen.state, seen.error) == (JobState.CANCELLED, error)


async def test_an_outcome_is_found_at_the_first_attempt_and_at_the_last(conn: Conn) -> None:
    """The search of a long history begins where the attempt can have ended at the earliest."""
    me = await worker(conn)
    numbers = []
    job = (await started(conn, me)).job
    await release(conn, me, [Release(job.id, 1, Reason.SNOOZED, 0.0)])
    numbers.append(1)
    await snooze(conn, job.id, 10)
    for state in (JobState.FAILED, JobState.COMPLETED):
        attempt = await again(conn, me)
        numbers.append(attempt.number)
        assert await recorded(conn, [attempt.key]) == {}
        ending = failed(attempt)._replace(state=state, reason=Reason(state.lower()))
        assert await finish(conn, me, [ending]) == {attempt.key: state}
        assert await recorded(conn, [attempt.key]) == {attempt.key: state}
        if state is JobState.FAILED:
            await redrive(conn, job.id, None)
    assert numbers == [1, 12, 13]
    assert (await recorded(conn, [(job.id, n) for n in numbers]))[job.id, 1] is JobState.PENDING


async def test_a_history_is_read_in_pages_that_cover_it_exactly_once(conn: Conn) -> None:
    job = await enqueue(conn, new())
    await snooze(conn, job.id, 5)
    found: list[int] = []
    while rows := await audit.history(conn, job.id, "ann", after=found[-1] if found else -1, limit=4):
        assert len(rows) <= 4
        found += [row.seq for row in rows]
    assert found == list(range(11))
    assert [row.seq for row in await audit.latest(conn, job.id, 4)] == [7, 8, 9, 10]
    assert [row.seq for row in await audit.latest(conn, job.id, 100)] == found
    await snooze(conn, job.id, audit.PAGE)
    assert len(await audit.history(conn, job.id, None) or []) == audit.PAGE


async def test_a_long_history_keeps_every_invariant(conn: Conn) -> None:
    """The rows that these tests write are those that the moves would have written."""
    from engine.queries.invariants import check

    job = (await erred(conn, await worker(conn))).job
    await snooze(conn, job.id, 100)
    assert await check(conn, {}) == []
    assert await fetchone(conn, "SELECT max(seq), max(attempt) FROM job_state_records") == (202, 101)
