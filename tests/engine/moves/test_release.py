"""A released job is where it was in the queue, and its next wait begins with its release."""

from __future__ import annotations

import pytest

from engine.model import Reason
from engine.moves import Release, claim, release
from tests.support.database import LANES, Conn, fetchone, started, trail, worker


async def test_an_earlier_attempt_of_the_same_worker_releases_nothing(conn: Conn) -> None:
    me = await worker(conn)
    early = await started(conn, me)
    stale = Release(*early.key, Reason.SHUTDOWN)
    await release(conn, me, [stale])
    [late] = await claim(conn, me, LANES, 1)
    assert late.key == (early.job.id, 2)
    assert await release(conn, me, [stale]) == {}
    assert (await trail(conn, early.job.id))[-1] == (3, "PENDING", "PROCESSING", 2, "claimed")


@pytest.mark.parametrize("time", ["due_at", "ready_at"])
async def test_the_time_of_a_released_attempt_is_not_the_next_one_s_wait(conn: Conn, time: str) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    (before,) = await fetchone(conn, "SELECT clock_timestamp()")
    assert getattr(attempt, time) < before
    await release(conn, me, [Release(*attempt.key, Reason.SHUTDOWN)])
    [again] = await claim(conn, me, LANES, 1)
    assert before < getattr(again, time) < again.started_at
