"""What a system has told the world through Pub/Sub, held against what its database says it has to."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any
from uuid import UUID

from google.pubsub_v1.types import PullRequest
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

from ops.waiting import until
from tests.support.database import Conn
from tests.support.pubsub_clients import Clients, clients
from tests.support.transport_harness import TransportHarness

TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}
JOB_ID = {"type": "string", "format": "uuid"}
ERROR = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "message": {"type": "string"}, "attempt": {"type": "integer"}},
    "required": ["type", "message", "attempt"],
    "additionalProperties": False,
}


def _body(**properties: Any) -> Draft202012Validator:
    """Exactly these members and `schema_version`."""
    properties["schema_version"] = {"const": 1}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Draft202012Validator(schema, format_checker=FormatChecker())


JOB = _body(
    job_id=JOB_ID,
    user_id={"type": "string"},
    preset={"type": "string"},
    attempt={"type": "integer", "minimum": 1},
    created_at=TIME,
)
RESULT = _body(
    job_id=JOB_ID,
    user_id={"type": "string"},
    preset={"type": "string"},
    status={"enum": ["completed", "failed", "cancelled"]},
    output={},
    error={"anyOf": [{"type": "null"}, ERROR]},
    attempt={"type": "integer", "minimum": 0},
    execution_time_ms={"type": ["integer", "null"], "minimum": 0},
    completed_at=TIME,
)
DEAD_LETTER = _body(
    job_id=JOB_ID,
    user_id={"type": "string"},
    preset={"type": "string"},
    reason={"type": "string", "minLength": 1},
    error={"anyOf": [{"type": "null"}, ERROR]},
    attempts={"type": "integer", "minimum": 0},
    failed_at=TIME,
    raw={"type": "null"},
)
KINDS = {"JobMessage": JOB, "ResultMessage": RESULT, "DeadLetterMessage": DEAD_LETTER}

# Each end that a job has come to, a redriven one's as well.
ENDS = """
SELECT job_id, seq, to_state::text, attempt, reason FROM job_state_records
WHERE to_state IN ('COMPLETED', 'FAILED', 'CANCELLED')
"""


WATCH = "watch"
KNOWN = """
SELECT id::text, user_id, preset, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS') FROM jobs
"""


async def watch(system: TransportHarness) -> None:
    """Keep a copy of every wake-up, for `check_woken` to read."""
    if system.broker is not None:
        async with clients(system.broker.host, system.broker.project) as google:
            await google.subscribe(WATCH, system.names.jobs)


async def check_wake_ups(system: TransportHarness) -> None:
    """The wake-ups are what they should be, and none is for a job that was never accepted."""
    if system.broker is None:
        return
    known = {row[0]: row[1:] for row in await (await system.harness.conn.execute(KNOWN)).fetchall()}
    async with clients(system.broker.host, system.broker.project) as google:
        woken = await received(google, "JobMessage", WATCH, 0)
    for body in woken.values():
        assert (body["user_id"], body["preset"], body["created_at"][:19]) == known[body["job_id"]]


def checked(kind: str, message: Any) -> dict[str, Any]:
    """The body of a raw PubsubMessage, its shape and attributes proven."""
    body: dict[str, Any] = json.loads(message.data)
    KINDS[kind].validate(body)
    attributes = dict(message.attributes)
    assert attributes.pop("message_id").startswith(body["job_id"])
    attributes.pop("traceparent", None)
    assert attributes == {"type": kind, "job_id": body["job_id"], "schema_version": "1"}
    return body


async def check_messages(system: TransportHarness, unpublished_jobs: Container[UUID] = ()) -> None:
    """One result for each end of a job and one dead letter for each failure, told apart by their message ids.

    Jobs of `untold` have ended where nothing was announced.
    """
    conn = system.harness.conn
    if system.broker is None:
        cursor = await conn.execute("SELECT 1 FROM outbox_events")
        assert await cursor.fetchall() == []
        return
    await until(lambda: _all_left(conn))
    ends = [end for end in await (await conn.execute(ENDS)).fetchall() if end[0] not in unpublished_jobs]
    results = {f"{job_id}:{seq}:ResultMessage": end for job_id, seq, *end in ends}
    failures = {f"{job_id}:{seq}:DeadLetterMessage": end for job_id, seq, *end in ends if end[0] == "FAILED"}
    async with clients(system.broker.host, system.broker.project) as google:
        told = await received(google, "ResultMessage", "pipeline-results-sub", len(results))
        dead = await received(google, "DeadLetterMessage", "pipeline-dlq-sub", len(failures))
    assert {key: [body["status"].upper(), body["attempt"]] for key, body in told.items()} == {
        key: [state, attempt] for key, (state, attempt, _) in results.items()
    }
    assert {key: [body["attempts"], body["reason"]] for key, body in dead.items()} == {
        key: [attempt, reason] for key, (_, attempt, reason) in failures.items()
    }


async def received(google: Clients, kind: str, subscription: str, count: int) -> dict[str, dict[str, Any]]:
    """The bodies in a subscription by message id: `count` of them, or as many more as are there at once."""
    found: dict[str, dict[str, Any]] = {}
    request = PullRequest(
        subscription=google.subscription(subscription), max_messages=1000, return_immediately=True
    )
    pull: Any = google.subscriber.transport.pull  # the client's own method warns of return_immediately

    async def look() -> bool:
        response = await pull(request, timeout=5)
        for each in response.received_messages:
            body = checked(kind, each.message)
            first = found.setdefault(each.message.attributes["message_id"], body)
            # A job that was released keeps its place, and is told of again under the same id.
            assert body == first or kind == "JobMessage"
        return len(found) >= count and not response.received_messages

    await until(look)
    return found


async def _all_left(conn: Conn) -> bool:
    return not await (await conn.execute("SELECT 1 FROM outbox_events")).fetchall()


async def terminal_states(conn: Conn, job_id: UUID) -> list[str]:
    """The states that a job has ended in, oldest first."""
    cursor = await conn.execute(ENDS + "AND job_id = %s ORDER BY seq", [job_id])
    return [state for _, _, state, _, _ in await cursor.fetchall()]
