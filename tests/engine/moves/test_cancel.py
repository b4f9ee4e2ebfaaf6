"""A cancellation is a result once: when it writes one."""

from __future__ import annotations

from engine.model import JobState
from engine.moves import cancel
from engine.moves.enqueue import enqueue
from tests.support.database import Conn, new, started, worker


async def test_only_a_cancellation_that_writes_a_result_is_told_of(conn: Conn) -> None:
    told: list[str] = []
    running = await started(conn, await worker(conn))
    assert await cancel(conn, running.job.id, "ann", on_result=told.append) is JobState.PROCESSING
    assert told == []
    pending = await enqueue(conn, new())
    for _ in range(2):
        assert await cancel(conn, pending.id, "ann", on_result=told.append) is JobState.CANCELLED
    assert told == ["p"]
