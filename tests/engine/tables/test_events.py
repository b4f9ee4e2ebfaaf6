"""With `announce`, every move that writes a result leaves its messages in the same statement."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from engine.model import MAX_CRASHES, JobState, Reason
from engine.moves import Ending, Release, cancel, finish, redrive, release
from engine.pubsub import messages
from engine.pubsub.messages import Message, Undecodable, WakeUp
from engine.tables import events
from tests.conftest import Connect
from tests.support.database import Conn, fetchone, lapse_dead, new, started, worker

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BOOM = '{"type": "ValueError", "message": "boom \\u0001 ü", "attempt": 1}'


async def outgoing(conn: Conn) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    cursor = await conn.execute("SELECT topic, payload, attributes FROM outbox_events ORDER BY id")
    return [
        (topic, json.loads(payload), attributes) for topic, payload, attributes in await cursor.fetchall()
    ]


async def events_written(conn: Conn) -> list[tuple[str, str]]:
    return [(topic, body.get("status") or body["reason"]) for topic, body, _ in await outgoing(conn)]


async def result_row(conn: Conn, job_id: UUID) -> tuple[Any, ...]:
    return await fetchone(conn, "SELECT finished_at, started_at FROM job_results WHERE job_id = %s", job_id)


async def test_a_completed_job_leaves_one_result_message(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me, traceparent=TRACE)
    output = '{"b": 1, "a": [1.50, "ü"]}'
    await finish(
        conn, me, [Ending(*attempt.key, JobState.COMPLETED, Reason.COMPLETED, output)], publish_results=True
    )
    [(topic, body, attributes)] = await outgoing(conn)
    finished_at, started_at = await result_row(conn, attempt.job.id)
    completed_at = body.pop("completed_at")
    assert topic == "results"
    assert completed_at.endswith("Z")
    assert datetime.fromisoformat(completed_at) == finished_at
    assert body == {
        "job_id": str(attempt.job.id),
        "user_id": "ann",
        "preset": "p",
        "status": "completed",
        "output": {"b": 1, "a": [1.5, "ü"]},
        "error": None,
        "attempt": 1,
        "execution_time_ms": round((finished_at - started_at) / timedelta(milliseconds=1)),
        "schema_version": 1,
    }
    assert attributes == {
        "message_id": f"{attempt.job.id}:2:ResultMessage",
        "type": "ResultMessage",
        "job_id": str(attempt.job.id),
        "schema_version": "1",
        "traceparent": TRACE,
    }


async def test_the_pipelines_own_text_of_an_output_is_kept(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await finish(
        conn,
        me,
        [Ending(*attempt.key, JobState.COMPLETED, Reason.COMPLETED, '{"z":1,"a":2}')],
        publish_results=True,
    )
    cursor = await conn.execute("SELECT convert_from(payload, 'UTF8') FROM outbox_events")
    row = await cursor.fetchone()
    assert row is not None
    assert '{"z":1,"a":2}' in row[0]


async def test_a_failed_job_leaves_a_dead_letter_as_well(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    ending = Ending(*attempt.key, JobState.FAILED, Reason.ERROR, error=BOOM, spent=1)
    await finish(conn, me, [ending], publish_results=True)
    [(_, result, _), (topic, letter, attributes)] = await outgoing(conn)
    finished_at, _ = await result_row(conn, attempt.job.id)
    assert (result["status"], result["output"], result["error"]) == ("failed", None, json.loads(BOOM))
    assert topic == "dead-letters"
    assert datetime.fromisoformat(letter.pop("failed_at")) == finished_at
    assert letter == {
        "job_id": str(attempt.job.id),
        "user_id": "ann",
        "preset": "p",
        "reason": "error",
        "error": json.loads(BOOM),
        "attempts": 1,
        "raw": None,
        "schema_version": 1,
    }
    assert attributes["message_id"] == f"{attempt.job.id}:2:DeadLetterMessage"
    assert "traceparent" not in attributes


async def test_a_pending_job_that_is_cancelled_never_ran(conn: Conn) -> None:
    from engine.moves.enqueue import enqueue

    job = await enqueue(conn, new())
    await cancel(conn, job.id, "ann", publish_results=True)
    [(_, body, _)] = await outgoing(conn)
    assert (body["status"], body["attempt"], body["execution_time_ms"]) == ("cancelled", 0, None)


async def test_a_running_job_is_reported_when_its_worker_has_stopped_it(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    assert await cancel(conn, attempt.job.id, "ann", publish_results=True) is JobState.PROCESSING
    assert await events_written(conn) == []
    await release(conn, me, [Release(*attempt.key, Reason.ERROR, 1.0, BOOM, 1)], publish_results=True)
    assert await events_written(conn) == [("results", "cancelled")]


async def test_a_job_whose_workers_die_is_a_dead_letter(conn: Conn) -> None:
    me = await worker(conn)
    await started(conn, me)
    await conn.execute("UPDATE outbox SET crashes = %s", [MAX_CRASHES - 1])
    await conn.execute("UPDATE workers SET expires_at = now()")
    await lapse_dead(conn, publish_results=True)
    assert await events_written(conn) == [("results", "failed"), ("dead-letters", "lapsed")]


async def test_jobs_that_go_on_are_not_reported(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await release(conn, me, [Release(*attempt.key, Reason.ERROR, 1.0, BOOM, 1)], publish_results=True)
    assert await events_written(conn) == []


async def test_a_redriven_job_is_reported_again_under_another_id(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await finish(
        conn,
        me,
        [Ending(*attempt.key, JobState.FAILED, Reason.ERROR, error=BOOM, spent=1)],
        publish_results=True,
    )
    await redrive(conn, attempt.job.id, None)
    await cancel(conn, attempt.job.id, None, publish_results=True)
    ids = [attributes["message_id"] for _, _, attributes in await outgoing(conn)]
    assert len(set(ids)) == 3


async def test_without_announce_nothing_is_written(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await finish(conn, me, [Ending(*attempt.key, JobState.FAILED, Reason.ERROR, error=BOOM, spent=1)])
    assert await outgoing(conn) == []


async def test_a_transaction_that_rolls_back_leaves_no_message(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    async with conn.transaction(force_rollback=True):
        await finish(
            conn, me, [Ending(*attempt.key, JobState.COMPLETED, Reason.COMPLETED, "1")], publish_results=True
        )
    assert await outgoing(conn) == []


async def fill(conn: Conn, sizes: list[int]) -> None:
    for n, size in enumerate(sizes):
        await conn.execute(
            "INSERT INTO outbox_events (topic, payload, attributes) VALUES ('results', %s, %s)",
            [b"x" * size, Jsonb({"n": str(n)})],
        )


async def reserve(
    conn: Conn, low: int = 0, limit: int = 100, max_bytes: int = 1000, seconds: float = 60
) -> list[int]:
    found = await events.reserve(conn, "results", low=low, limit=limit, max_bytes=max_bytes, seconds=seconds)
    return [int(event.message.attributes["n"]) for event in found]


async def test_a_reservation_fits_into_a_request_and_takes_one_event_at_least(conn: Conn) -> None:
    await fill(conn, [400, 400, 400, 5000, 10])
    assert await reserve(conn) == [0, 1]
    assert await reserve(conn) == [2]
    assert await reserve(conn) == [3]
    assert await reserve(conn) == [4]
    assert await reserve(conn) == []


async def test_a_reservation_that_ended_is_anybodys(conn: Conn) -> None:
    await fill(conn, [10])
    assert await reserve(conn, seconds=0) == [0]
    assert await reserve(conn) == [0]


async def test_events_in_other_hands_are_passed_over(conn: Conn, connect: Connect) -> None:
    await fill(conn, [10, 10])
    other = await connect()
    async with asyncio.timeout(10), other.transaction():
        await other.execute("SELECT 1 FROM outbox_events WHERE attributes ->> 'n' = '0' FOR UPDATE")
        assert await reserve(conn) == [1]


async def test_what_was_given_back_is_reserved_again_and_what_was_set_aside_is_not(conn: Conn) -> None:
    await fill(conn, [10, 10, 10])
    first, second, third = await events.reserve(conn, "results", low=0, limit=9, max_bytes=1000, seconds=60)
    await events.release(conn, [first])
    await events.quarantine(conn, second, "too odd")
    await events.published(conn, [third])
    assert await reserve(conn) == [0]
    cursor = await conn.execute("SELECT id, reason FROM outbox_events WHERE quarantined_at IS NOT NULL")
    assert await cursor.fetchall() == [(second.id, "too odd")]


def test_a_wake_up_says_what_the_contract_says() -> None:
    created = datetime(2026, 3, 1, 12, 0, 0, 250000, timezone(timedelta(hours=2)))
    job_id = UUID(int=7)
    wake_up = WakeUp(job_id, 41, 2, "ann", "p", 1, created, TRACE)
    assert json.loads(wake_up.message.data) == {
        "job_id": str(job_id),
        "user_id": "ann",
        "preset": "p",
        "attempt": 3,
        "created_at": "2026-03-01T10:00:00.250000Z",
        "schema_version": 1,
    }
    assert wake_up.message.attributes == {
        "message_id": f"{job_id}:41",
        "type": "JobMessage",
        "job_id": str(job_id),
        "schema_version": "1",
        "traceparent": TRACE,
    }
    assert messages.job_id_of(wake_up.message.data) == job_id


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"7", b"null", b"{}", b'{"job_id": 7}', b'{"job_id": "x"}', b'"' + b"[" * 5000],
)
def test_bytes_that_are_no_wake_up_keep_their_bytes_and_attributes(data: bytes) -> None:
    with pytest.raises(Undecodable) as refused:
        messages.job_id_of(data)
    said = {"from": "a stranger", "ü": "\u0001"}
    letter = messages.undecodable("77", data, refused.value, datetime(2026, 1, 1, tzinfo=UTC), said)
    body = json.loads(letter.data)
    assert base64.b64decode(body["raw"]) == data
    assert not {"raw_bytes", "raw_sha256"} & body.keys(), "nothing is cut"
    assert body["raw_attributes"] == said
    assert (body["job_id"], body["user_id"], body["preset"]) == (None, None, None)
    assert letter.attributes["message_id"] == "77:DeadLetterMessage"


@pytest.mark.parametrize("size", [messages.MAX_RAW_BYTES, messages.MAX_RAW_BYTES + 1, 9_000_000])
def test_the_dead_letter_of_a_stray_message_fits_into_every_reader(size: int) -> None:
    data = random.Random(1).randbytes(size)  # noqa: S311
    attributes = {f"{n:03}" + "k" * 253: "\u0001" * 1024 for n in range(100)}
    letter = messages.undecodable("77", data, Undecodable("x" * 9000), datetime.now(UTC), attributes)
    body = json.loads(letter.data)
    assert len(letter.data) + sum(map(len, letter.attributes.values())) < MAX_MESSAGE
    assert base64.b64decode(body["raw"]) == data[: messages.MAX_RAW_BYTES]
    if size > messages.MAX_RAW_BYTES:
        assert (body["raw_bytes"], body["raw_sha256"]) == (size, hashlib.sha256(data).hexdigest())
    assert 0 < len(body["raw_attributes"]) < 100
    assert body["raw_attributes"].items() <= attributes.items()


MAX_MESSAGE = 3.5 * 2**20


@pytest.mark.parametrize("letter", ["x", "ü", "€", "😀"])
@pytest.mark.parametrize("more", [0, 1, 500_000])
async def test_an_output_that_would_make_its_message_too_large_for_readers_is_replaced_by_a_link(
    conn: Conn, letter: str, more: int
) -> None:
    """Counted in bytes, whatever the characters."""
    me = await worker(conn)
    attempt = await started(conn, me)
    most = 3_670_016 - 65_536
    room = most - 2 + more
    count, rest = divmod(room, len(letter.encode()))
    output = json.dumps(letter * count + "x" * rest, ensure_ascii=False)
    assert len(output.encode()) == most + more
    await finish(
        conn, me, [Ending(*attempt.key, JobState.COMPLETED, Reason.COMPLETED, output)], publish_results=True
    )
    [(_, body, _)] = await outgoing(conn)
    (size,) = await fetchone(
        conn, "SELECT octet_length(payload) + octet_length(attributes::text) FROM outbox_events"
    )
    assert size < MAX_MESSAGE
    if more:
        assert body["output"] is None
        assert (body["output_bytes"], body["links"]) == (
            most + more,
            {"self": f"/pipeline/job/{attempt.job.id}"},
        )
        assert body["status"] == "completed"
    else:
        assert body["output"] == json.loads(output)
        assert not {"output_bytes", "links"} & body.keys()


async def test_a_message_is_written_in_the_callers_transaction(conn: Conn) -> None:
    async with conn.transaction():
        await events.write(conn, "dead-letters", Message(b'{"reason": "odd"}', {"message_id": "1"}))
    assert await events_written(conn) == [("dead-letters", "odd")]
