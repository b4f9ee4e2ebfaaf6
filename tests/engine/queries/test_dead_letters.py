"""Dead letters, page by page: every job that failed for good and no other, the oldest job first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from engine.model import JobState, Reason
from engine.moves import Ending, Release, cancel, claim, finish, redrive, release
from engine.moves.enqueue import enqueue
from engine.queries.dead_letters import FIRST, DeadLetter, page
from engine.tables.outbox import Lane
from tests.support.database import Conn, fetchone, new, started, worker

ERROR = '{"type": "Boom", "message": "no", "attempt": 1}'


async def fail(conn: Conn, worker_id: int, job_id: UUID, fingerprint: str = "f") -> None:
    """Claim it, whatever its preset, and have it fail for good."""
    (preset,) = await fetchone(conn, "SELECT preset FROM jobs WHERE id = %s", job_id)
    [attempt] = [a for a in await claim(conn, worker_id, [Lane(preset, 2)], 100) if a.job.id == job_id]
    ending = Ending(job_id, attempt.number, JobState.FAILED, Reason.FAILED, None, ERROR, fingerprint, "{}", 1)
    assert await finish(conn, worker_id, [ending]) == {attempt.key: JobState.FAILED}


async def dead(conn: Conn, worker_id: int, *, preset: str = "p", fingerprint: str = "f") -> UUID:
    job = await enqueue(conn, new(preset=preset))
    await fail(conn, worker_id, job.id, fingerprint)
    return job.id


def ids(letters: list[DeadLetter]) -> list[UUID]:
    return [letter.job_id for letter in letters]


async def test_a_dead_letter_says_whose_job_it_was_and_what_went_wrong(conn: Conn) -> None:
    me = await worker(conn)
    job_id = await dead(conn, me, preset="q", fingerprint="boom")
    [letter] = await page(conn)
    failed_at = letter.failed_at
    assert letter == DeadLetter(
        job_id=job_id,
        user_id="ann",
        preset="q",
        fingerprint="boom",
        error={"type": "Boom", "message": "no", "attempt": 1},
        attempt=1,
        failed_at=failed_at,
    )
    assert abs(datetime.now(UTC) - failed_at) < timedelta(minutes=1)


async def test_only_a_job_that_failed_for_good_is_a_dead_letter(conn: Conn) -> None:
    me = await worker(conn)
    failed = await dead(conn, me)
    done = await started(conn, me)
    result = Ending(done.job.id, 1, JobState.COMPLETED, Reason.COMPLETED, "1")
    assert await finish(conn, me, [result]) == {done.key: JobState.COMPLETED}
    cancelled = await enqueue(conn, new())
    assert await cancel(conn, cancelled.id, None) is JobState.CANCELLED
    again = await started(conn, me)
    assert await release(conn, me, [Release(again.job.id, 1, Reason.ERROR, 3600.0, ERROR, 1)])
    await started(conn, me)
    await enqueue(conn, new())
    assert ids(await page(conn)) == [failed]


async def test_a_job_that_is_redriven_is_no_dead_letter_until_it_fails_again(conn: Conn) -> None:
    me = await worker(conn)
    job_id = await dead(conn, me)
    await redrive(conn, job_id, None)
    assert await page(conn) == []
    await fail(conn, me, job_id, "another")
    assert [(letter.job_id, letter.attempt, letter.fingerprint) for letter in await page(conn)] == [
        (job_id, 2, "another")
    ]


async def test_the_oldest_job_comes_first_whichever_failed_first(conn: Conn) -> None:
    me = await worker(conn)
    made = [await started(conn, me) for _ in range(5)]
    for each in (made[3], made[0], made[4], made[2], made[1]):
        ending = Ending(each.job.id, 1, JobState.FAILED, Reason.FAILED, None, ERROR, "f", "{}", 1)
        assert await finish(conn, me, [ending])
    assert ids(await page(conn)) == [each.job.id for each in made]


@pytest.mark.parametrize(
    ("preset", "fingerprint", "found"),
    [
        (None, None, [0, 1, 2, 3, 4]),
        ("p", None, [0, 1, 4]),
        (None, "x", [0, 2, 4]),
        ("p", "x", [0, 4]),
        ("q", "y", [3]),
        ("nobody", None, []),
        (None, "", []),
        ("p", "X", []),
    ],
)
async def test_a_page_holds_the_dead_letters_of_a_preset_and_a_fingerprint(
    conn: Conn, preset: str | None, fingerprint: str | None, found: list[int]
) -> None:
    me = await worker(conn)
    kinds = [("p", "x"), ("p", "y"), ("q", "x"), ("q", "y"), ("p", "x")]
    all_ids = [await dead(conn, me, preset=each, fingerprint=mark) for each, mark in kinds]
    letters = await page(conn, preset=preset, fingerprint=fingerprint)
    assert ids(letters) == [all_ids[n] for n in found]


@pytest.mark.parametrize("limit", [1, 3, 4, 7, 8])
async def test_pages_follow_each_other_without_gaps_or_repeats(conn: Conn, limit: int) -> None:
    me = await worker(conn)
    wanted: list[UUID] = []
    seen: list[UUID] = []
    after = FIRST
    for n in range(14):
        job_id = await dead(conn, me, preset="pq"[n % 2])
        wanted += [job_id] if n % 2 == 0 else []
    while letters := ids(await page(conn, preset="p", after=after, limit=limit)):
        assert len(letters) == min(limit, len(wanted) - len(seen))
        seen += letters
        after = letters[-1]
    assert seen == wanted


async def test_what_leaves_or_comes_between_two_pages_moves_no_other(conn: Conn) -> None:
    me = await worker(conn)
    made = [await dead(conn, me) for _ in range(6)]
    first = ids(await page(conn, limit=3))
    assert first == made[:3]
    for job_id in (made[0], made[2], made[4]):
        await redrive(conn, job_id, None)
    newest = await dead(conn, me)
    assert ids(await page(conn, after=first[-1], limit=3)) == [made[3], made[5], newest]
