"""Processes of the code before a version run on its schema for the length of a deploy: their statements are here."""

from __future__ import annotations

import pytest

from engine.moves.lapse import look
from engine.pubsub.messages import Message
from engine.queries.queue_stats import queue_stats
from engine.tables import events
from engine.tables.relay_status import RelayStatus, report, reported
from tests.support.database import Conn, fetchone, lapse_dead, started, suspected, worker

# Of the code before 0004: it knew relay_facts and workers.drained.
REPORT = """
INSERT INTO relay_facts AS told (relay, topic, state, since, detail)
SELECT %(relay)s, topic, state, clock_timestamp() - seconds * interval '1 second', detail
FROM unnest(%(topics)s::text[], %(states)s::text[], %(seconds)s::float8[], %(details)s::text[])
     AS x(topic, state, seconds, detail)
ORDER BY topic
ON CONFLICT (relay, topic) DO UPDATE
SET state = excluded.state, since = excluded.since, detail = excluded.detail, updated_at = clock_timestamp()
"""
TOLD = """
SELECT relay, topic, state, since, detail, updated_at AS heard_at,
       updated_at > clock_timestamp() - %s * interval '1 second' AS live
FROM relay_facts
ORDER BY relay, topic
"""
PRUNE_FACTS = """
DELETE FROM relay_facts
WHERE (relay, topic) IN (
    SELECT relay, topic FROM relay_facts WHERE updated_at < now() - interval '1 minute' LIMIT %s)
"""
# Of the code before 0006: it charged every attempt of a dead worker, and knew no suspects.
CLAIM = """
UPDATE outbox SET status = 'leased', attempt = attempt + 1, version = version + 1, worker_id = %s,
                  claimed_at = clock_timestamp(), publish_until = NULL
WHERE status = 'ready' RETURNING job_id
"""
BEAT = """
WITH beat AS (
    UPDATE workers SET expires_at = clock_timestamp() + %s * interval '1 second', drained = %s::jsonb
    WHERE id = %s
    RETURNING id
)
SELECT q.job_id, q.attempt, q.cancel_requested
FROM beat LEFT JOIN outbox q ON q.worker_id = beat.id AND q.status = 'leased'
"""


def a_fact(state: str) -> dict[str, object]:
    return {
        "relay": "old:1",
        "topics": ["jobs", "maintenance"],
        "states": [state, "maintaining"],
        "seconds": [1.0, 1.0],
        "details": [None, None],
    }


async def test_what_an_older_relay_reports_is_read_by_a_newer_process_and_the_other_way_round(
    conn: Conn,
) -> None:
    for state in ("publishing", "passing"):
        await conn.execute(REPORT.encode(), a_fact(state))
    await report(conn, "new:1", [RelayStatus("jobs", "publishing", 5.0, None)])
    newer = [(each.relay, each.topic, each.state, each.live) for each in await reported(conn)]
    rows = await (await conn.execute(TOLD.encode(), [20.0])).fetchall()
    assert newer == [(relay, topic, state, live) for relay, topic, state, *_, live in rows]
    assert ("old:1", "jobs", "passing", True) in newer
    assert len(newer) == 3


async def test_an_older_relay_prunes_what_is_stale_and_nothing_else(conn: Conn) -> None:
    await report(conn, "gone:1", [RelayStatus("jobs", "publishing", 5.0, None)])
    await conn.execute("UPDATE relay_status SET updated_at = updated_at - interval '2 minutes'")
    await report(conn, "here:1", [RelayStatus("jobs", "publishing", 5.0, None)])
    await conn.execute(PRUNE_FACTS.encode(), [1000])
    assert [each.relay for each in await reported(conn)] == ["here:1"]


@pytest.mark.parametrize("per_second", [0.0, 12.5])
async def test_the_throughput_of_an_older_worker_is_seen_by_newer_processes(
    conn: Conn, per_second: float
) -> None:
    worker_id = await worker(conn)
    await conn.execute(BEAT.encode(), [30.0, f'{{"p": {per_second}}}', worker_id])
    assert (await queue_stats(conn)).queues["p"].per_second == per_second


async def test_the_throughput_of_a_newer_worker_is_seen_by_older_processes(conn: Conn) -> None:
    worker_id = await worker(conn)
    await conn.execute("UPDATE workers SET throughput = '{\"p\": 3}' WHERE id = %s", [worker_id])
    await conn.execute(
        "UPDATE workers SET expires_at = now() + interval '1 minute' WHERE id = %s", [worker_id]
    )
    assert await fetchone(conn, "SELECT drained ->> 'p' FROM workers") == ("3",)


# Of the code before 0007, which knew both tables as UNLOGGED.
REPORT_PROGRESS = """
INSERT INTO job_progress AS known (job_id, attempt, n, fraction, message)
VALUES (gen_random_uuid(), 1, 1, 0.5, 'half')
ON CONFLICT (job_id) DO UPDATE
SET attempt = excluded.attempt, n = excluded.n, fraction = excluded.fraction, message = excluded.message,
    updated_at = clock_timestamp()
WHERE (known.attempt, known.n) < (excluded.attempt, excluded.n)
"""


async def test_every_table_can_be_read_on_a_standby_and_is_written_by_older_workers_as_before(
    conn: Conn,
) -> None:
    unlogged = (
        "SELECT count(*) FROM pg_class WHERE relpersistence = 'u' AND relnamespace = 'public'::regnamespace"
    )
    assert await fetchone(conn, unlogged) == (0,)
    await conn.execute(REPORT_PROGRESS.encode())
    assert await fetchone(conn, "SELECT fraction FROM job_progress") == (0.5,)


async def test_an_older_worker_is_dead_only_once_the_lease_is_over_that_its_row_promises(conn: Conn) -> None:
    """It says nowhere how long its lease is, and may have a longer one than the relay."""
    worker_id = await worker(conn)
    await conn.execute(BEAT.encode(), [30.0, "{}", worker_id])
    [seen] = await look(conn, 3.0)
    assert 20 < seen.lease_seconds <= 30


async def test_an_older_worker_may_take_a_suspect_and_newer_processes_go_on_from_there(conn: Conn) -> None:
    worker_id = await worker(conn)
    job = await suspected(conn, 1)
    assert await fetchone(conn, CLAIM, worker_id) == (job.id,)
    await conn.execute("UPDATE workers SET expires_at = now() WHERE id = %s", [worker_id])
    assert [each.charged for each in await lapse_dead(conn)] == [True]


# Of the code before 0013, whose relay knew what runs apart by itself.
REGISTER = """
INSERT INTO workers (name, presets, slots, lease_seconds, expires_at)
VALUES ('old', '{p}', 10, 30, clock_timestamp() + interval '30 s')
RETURNING id
"""
EXPIRE = """
DELETE FROM workers WHERE id = %s RETURNING id, name
"""


async def test_an_older_worker_registers_and_lapses_as_one_that_runs_nothing_apart(conn: Conn) -> None:
    (worker_id,) = await fetchone(conn, REGISTER)
    await started(conn, worker_id)
    await conn.execute("UPDATE workers SET expires_at = now() WHERE id = %s", [worker_id])
    assert [each.charged for each in await lapse_dead(conn)] == [True]


async def test_an_older_relay_expires_a_newer_worker(conn: Conn) -> None:
    worker_id = await worker(conn, apart=["p"])
    assert await fetchone(conn, EXPIRE, worker_id) == (worker_id, "w")


# Of the code before 0010: it knew no failures, and set an event back for nothing.
RESERVE = """
UPDATE outbox_events SET publish_until = clock_timestamp() + interval '10 s'
WHERE quarantined_at IS NULL AND (publish_until IS NULL OR publish_until < clock_timestamp())
RETURNING id
"""


async def test_an_older_relay_leaves_alone_what_a_newer_one_has_set_back_and_takes_it_after_the_pause(
    conn: Conn,
) -> None:
    await events.write(conn, "results", Message(b"{}", {"message_id": "1"}))
    [event] = await events.reserve(conn, "results", low=0, limit=9, max_bytes=1000, seconds=60)
    await events.set_back(conn, event, seconds=60, failures=1, reason="too slow")
    assert await (await conn.execute(RESERVE.encode())).fetchall() == []
    await conn.execute("UPDATE outbox_events SET publish_until = now() - interval '1 s'")
    assert await fetchone(conn, RESERVE) == (event.id,)
    await events.release(conn, [event])
    assert await (await conn.execute(RESERVE.encode())).fetchall() == [], "it is the older relay's now"
