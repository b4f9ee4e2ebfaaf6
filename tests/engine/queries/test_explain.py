"""What `explain` says of a job in every place it can be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.errors import JobNotFound
from engine.model import Job, JobState, NewJob, Reason
from engine.moves import Ending, Release, cancel, claim, finish, release
from engine.moves.enqueue import enqueue
from engine.pipeline import Pipeline, Registry, Run
from engine.queries import explain_query as sight
from engine.queries.explain import Explanation, explain
from engine.tables.outbox import Lane
from engine.tables.relay_status import RelayStatus, State, report
from tests.support.database import lapse_dead

Conn = AsyncConnection[TupleRow]


def nothing(_job: Job, _run: Run) -> None: ...


REGISTRY = Registry([Pipeline(preset="noop", function=nothing, max_attempts=4, timeout=45)])
ERROR = '{"type": "ValueError", "message": "no such page", "attempt": 1}'


async def enqueued(conn: Conn, **options: Any) -> UUID:
    return (await enqueue(conn, NewJob(**{"user_id": "ann", "preset": "noop", "content": "x"} | options))).id


async def worker(conn: Conn, lease: float = 60.0) -> int:
    sql = """INSERT INTO workers (name, presets, slots, expires_at)
             VALUES ('host-a', '{noop}', 10, clock_timestamp() + %s * interval '1 second') RETURNING id"""
    [(id_,)] = await (await conn.execute(sql, [lease])).fetchall()
    return int(id_)


async def explained(conn: Conn, job: UUID) -> Explanation:
    explanation = await explain(conn, REGISTRY, job, None)
    assert explanation.summary == explanation.facts[0].detail
    return explanation


def codes(explanation: Explanation) -> list[str]:
    return [fact.code for fact in explanation.facts]


async def test_another_owners_job_is_not_found(conn: Conn) -> None:
    job = await enqueued(conn)
    assert await explain(conn, REGISTRY, job, None) == await explain(conn, REGISTRY, job, "ann")
    with pytest.raises(JobNotFound):
        await explain(conn, REGISTRY, job, "bob")
    with pytest.raises(JobNotFound):
        await explain(conn, REGISTRY, uuid4(), None)


async def test_a_scheduled_job_says_when_it_is_due(conn: Conn) -> None:
    job = await enqueued(conn, run_at=datetime(2099, 5, 1, tzinfo=UTC))
    said = await explained(conn, job)
    assert said.summary == "the job is due at 2099-05-01T00:00:00Z"
    assert codes(said) == ["due_later", "no_worker"]
    soon = await explained(conn, await enqueued(conn, run_at=datetime.now(UTC) + timedelta(seconds=100)))
    assert soon.estimate_seconds == pytest.approx(100, abs=10)


async def overdue(conn: Conn) -> UUID:
    job = await enqueued(conn, run_at=datetime.now(UTC) + timedelta(hours=1))
    await conn.execute("UPDATE outbox SET run_at = clock_timestamp() - interval '1 second'")
    return job


async def lost(conn: Conn) -> UUID:
    job, mine = await enqueued(conn), await worker(conn)
    await claim(conn, mine, [Lane("noop", 2)], 1)
    await conn.execute("UPDATE workers SET expires_at = clock_timestamp() - interval '1 second'")
    return job


async def maintenance(conn: Conn, relay: str, state: State, detail: str | None = None) -> None:
    await report(conn, relay, [RelayStatus("maintenance", state, 30, detail)])


async def test_a_due_job_that_is_not_promoted_waits_for_maintenance(conn: Conn) -> None:
    job = await overdue(conn)
    await maintenance(conn, "h:1", "maintaining")
    said = await explained(conn, job)
    assert (codes(said), said.estimate_seconds) == (["due", "no_worker"], None)
    assert said.summary.endswith("Z: maintenance will make the job ready")


@pytest.mark.parametrize(
    ("place", "code", "promise"),
    [(overdue, "due", "make the job ready"), (lost, "worker_lost", "lapse the attempt")],
    ids=["due", "lost"],
)
async def test_nothing_is_promised_for_maintenance_that_nobody_does(
    conn: Conn, place: Callable[[Conn], Awaitable[UUID]], code: str, promise: str
) -> None:
    job = await place(conn)
    said = await explained(conn, job)
    assert codes(said)[:2] == ["no_maintenance", code]
    assert said.summary == (
        "no relay has reported: due jobs are not promoted, and lost attempts do not lapse, until one runs"
    )
    assert promise not in said.facts[1].detail
    await maintenance(conn, "h:1", "failing", "promote: no such table")
    said = await explained(conn, job)
    assert codes(said)[:2] == ["maintenance_failing", code]
    assert "failing since 20" in said.summary
    await maintenance(conn, "h:2", "maintaining")
    assert codes(said := await explained(conn, job))[0] == code
    assert said.summary.endswith(promise)
    await conn.execute("UPDATE relay_status SET updated_at = '2026-01-02T03:04:05Z'")
    said = await explained(conn, job)
    assert codes(said)[:2] == ["no_maintenance", code]
    assert said.summary.startswith("no relay has reported since 2026-01-02T03:04:05Z: due")


async def test_a_relay_that_reports_its_topics_alone_is_a_relay_too(conn: Conn) -> None:
    """While an upgrade rolls, relays of the older code do not tell of their maintenance."""
    job = await overdue(conn)
    await standing(conn, "publishing")
    assert codes(await explained(conn, job))[0] == "due"


async def test_a_worker_that_is_gone_is_named_while_its_row_is_there(conn: Conn) -> None:
    job = await lost(conn)
    lost_by = (await explained(conn, job)).facts[1]
    assert lost_by.code == "worker_lost"
    assert lost_by.detail.endswith(" (host-a), which is gone")
    await conn.execute("DELETE FROM workers")
    assert "(" not in (await explained(conn, job)).facts[1].detail


async def test_only_a_live_worker_with_the_preset_counts(conn: Conn) -> None:
    job = await enqueued(conn)
    await worker(conn, lease=-1)
    assert codes(await explained(conn, job)) == ["no_worker", "next"]
    await worker(conn)
    assert codes(await explained(conn, job)) == ["next"]
    other = await enqueued(conn, preset="other")
    assert codes(await explained(conn, other)) == ["no_worker", "next", "preset_unknown"]


async def test_jobs_ahead_are_those_of_its_preset_that_go_first(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker(conn)
    await enqueued(conn, preset="other")
    await enqueued(conn)
    urgent = await enqueued(conn, priority=1)
    job = await enqueued(conn)
    await enqueued(conn)
    assert (await explained(conn, urgent)).facts[0].code == "next"
    assert (await explained(conn, job)).summary == "the job is ready; jobs of the preset noop ahead: 2"
    monkeypatch.setattr(sight, "COUNTED", 1)
    assert (
        await explained(conn, job)
    ).summary == "the job is ready; jobs of the preset noop ahead: more than 1"


async def test_a_leased_job_names_its_worker_and_the_leases_end(conn: Conn) -> None:
    job, mine = await enqueued(conn), await worker(conn)
    await claim(conn, mine, [Lane("noop", 2)], 1)
    said = await explained(conn, job)
    assert (said.status, codes(said)) == (JobState.PROCESSING, ["running", "budget"])
    assert f"attempt 1 is leased by worker {mine} (host-a) until 20" in said.summary
    await conn.execute(
        "INSERT INTO job_progress (job_id, attempt, n, fraction, message) VALUES (%s, 1, 1, 0.25, 'reading')",
        [job],
    )
    await cancel(conn, job, "ann")
    assert [
        fact for fact in (await explained(conn, job)).facts if fact.code in ("cancel_requested", "progress")
    ] == [
        ("cancel_requested", "the attempt has been asked to stop"),
        ("progress", "25% reading"),
    ]
    await conn.execute("DELETE FROM workers")
    assert "worker_lost" in codes(await explained(conn, job))


@pytest.mark.parametrize(("given", "allowed"), [(None, 45), (60, 60)], ids=["the preset's", "the job's own"])
async def test_a_running_job_says_for_how_long_and_how_long_it_may(
    conn: Conn, given: int | None, allowed: int
) -> None:
    job, mine = await enqueued(conn, timeout_seconds=given), await worker(conn)
    await claim(conn, mine, [Lane("noop", 2)], 1)
    await conn.execute("UPDATE outbox SET claimed_at = clock_timestamp() - interval '35.2 s'")
    assert (await explained(conn, job)).summary.endswith(f"Z, for 35 s of {allowed} s")
    unknown = (await explain(conn, Registry([]), job, None)).summary
    assert unknown.endswith("Z, for 35 s of 60 s" if given else "Z, for 35 s")


async def test_published_jobs_that_were_not_all_looked_at_are_no_number(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sight, "COUNTED", 2)
    await worker(conn)
    await pace(conn, 0.25)
    others = [await enqueued(conn, preset="other") for _ in range(3)]
    job = await enqueued(conn)
    await conn.execute("UPDATE outbox SET status = 'published', published_at = ready_at")
    said = await explained(conn, job)
    assert said.facts[1].detail.startswith("the job is published; jobs published earlier: more than 2")
    assert said.estimate_seconds is None
    await cancel(conn, others[0], None)
    assert codes(said := await explained(conn, job)) == ["published", "next"]
    assert said.estimate_seconds == pytest.approx(1 / 0.25)


async def test_a_retry_shows_the_last_error_and_the_budget(conn: Conn) -> None:
    job, mine = await enqueued(conn), await worker(conn)
    await claim(conn, mine, [Lane("noop", 2)], 1)
    await release(conn, mine, [Release(job, 1, Reason.ERROR, 60.0, ERROR, 1)])
    said = await explained(conn, job)
    assert codes(said) == ["due_later", "last_error", "budget"]
    assert said.summary.endswith("(error)")
    assert said.facts[1].detail == "attempt 1 ended in ValueError: no such page"
    assert "attempts started: 1;" in said.facts[2].detail
    assert "1 of 4 errors" in said.facts[2].detail


async def test_an_ended_job_says_with_what(conn: Conn) -> None:
    mine = await worker(conn)
    job = await enqueued(conn)
    await claim(conn, mine, [Lane("noop", 2)], 1)
    await finish(conn, mine, [Ending(job, 1, JobState.FAILED, Reason.FAILED, error=ERROR, spent=1)])
    said = await explained(conn, job)
    assert (said.status, codes(said)) == (JobState.FAILED, ["failed", "last_error", "budget"])
    assert said.summary.startswith("the job ended as failed at 20")
    gone = await enqueued(conn)
    await cancel(conn, gone, None)
    assert codes(await explained(conn, gone)) == ["cancelled"]


async def pace(conn: Conn, per_second: float) -> None:
    await conn.execute("UPDATE workers SET throughput = jsonb_build_object('noop', %s::float8)", [per_second])


async def standing(conn: Conn, state: State, seconds: float = 30, detail: str | None = None) -> None:
    await report(conn, "host:1", [RelayStatus("jobs", state, seconds, detail)])


async def test_the_estimate_follows_from_the_jobs_ahead_and_the_workers_pace(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker(conn)
    await worker(conn)
    jobs = [await enqueued(conn) for _ in range(3)]
    assert (await explained(conn, jobs[2])).estimate_seconds is None
    await pace(conn, 0.25)
    said = await explained(conn, jobs[2])
    assert said.estimate_seconds == pytest.approx(3 / 0.5)
    assert said.summary == "the job is ready; jobs of the preset noop ahead: 2; throughput: 0.5 per second"
    await conn.execute(
        "UPDATE outbox SET status = 'published', published_at = ready_at WHERE job_id = ANY (%s)", [jobs]
    )
    said = await explained(conn, jobs[2])
    assert codes(said) == ["published", "queued"]
    assert said.estimate_seconds == pytest.approx(3 / 0.5)
    monkeypatch.setattr(sight, "COUNTED", 1)
    assert (await explained(conn, jobs[2])).estimate_seconds is None


async def test_a_ready_job_shows_how_the_relay_fares_with_its_wake_up(conn: Conn) -> None:
    await worker(conn)
    job = await enqueued(conn)
    await standing(conn, "publishing")
    assert codes(await explained(conn, job)) == ["unpublished", "next"]
    await standing(conn, "passing", 60, "UNAVAILABLE: no route")
    said = await explained(conn, job)
    assert codes(said) == ["breaker_open", "next"]
    assert "(UNAVAILABLE: no route); until publishing works, workers claim" in said.summary
    await standing(conn, "misconfigured", 60, "NOT_FOUND: no topic")
    assert "until an operator fixes that" in (await explained(conn, job)).summary
    await report(conn, "host:2", [RelayStatus("jobs", "publishing", 1, None)])
    assert codes(await explained(conn, job)) == ["unpublished", "next"]
    await conn.execute("UPDATE relay_status SET updated_at = '2026-01-02T03:04:05Z'")
    assert (await explained(conn, job)).summary.startswith(
        "no relay has reported since 2026-01-02T03:04:05Z; workers"
    )


async def test_the_latest_errors_are_shown_and_no_more_than_three(conn: Conn) -> None:
    job, mine = await enqueued(conn, max_attempts=9), await worker(conn)
    for number in range(1, 6):
        await claim(conn, mine, [Lane("noop", 2)], 1)
        error = f'{{"type": "ValueError", "message": "no page {number}", "attempt": {number}}}'
        await release(conn, mine, [Release(job, number, Reason.ERROR, None, error, 1)])
    errors = [fact for fact in (await explained(conn, job)).facts if fact.code.endswith("_error")]
    assert errors == [
        ("last_error", "attempt 5 ended in ValueError: no page 5"),
        ("earlier_error", "attempt 4 ended in ValueError: no page 4"),
        ("earlier_error", "attempt 3 ended in ValueError: no page 3"),
    ]


async def test_only_operators_are_shown_the_workers_process_and_the_brokers_words(conn: Conn) -> None:
    await worker(conn)
    running, ready = await enqueued(conn), await enqueued(conn)
    await claim(conn, 1, [Lane("noop", 2)], 1)
    await report(conn, "h:1", [RelayStatus("jobs", "passing", 5, "UNAVAILABLE: 10.0.0.7:443 is away")])
    for job, secret in ((running, "host-a"), (ready, "10.0.0.7")):
        operators = await explain(conn, REGISTRY, job, None)
        owners = await explain(conn, REGISTRY, job, "ann")
        assert any(secret in fact.detail for fact in operators.facts)
        assert not any(secret in fact.detail or "None" in fact.detail for fact in owners.facts)
        assert codes(operators) == codes(owners)


async def test_a_suspected_job_says_of_what_and_how_it_will_run(conn: Conn) -> None:
    mine = await worker(conn)
    jobs = [await enqueued(conn) for _ in range(3)]
    await claim(conn, mine, [Lane("noop", 2)], 3)
    await conn.execute("UPDATE workers SET expires_at = now()")
    await lapse_dead(conn)
    lost = f"suspected: worker {mine} stopped without an answer while it ran 3 attempts; the job runs"
    said = await explained(conn, jobs[0])
    assert codes(said)[:2] == ["no_worker", "suspected"]
    assert said.facts[1].detail == (
        f"{lost} beside few others that are suspected too, on a worker that runs nothing else"
    )
    await conn.execute("UPDATE outbox SET suspicion = 2")
    assert (await explained(conn, jobs[0])).facts[1].detail == (
        f"{lost} alone, on a worker that runs nothing else"
    )
    assert "queued" not in codes(said)
