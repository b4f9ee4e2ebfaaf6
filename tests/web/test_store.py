"""The store under a database that fails, and under more load than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from engine.model import JobState
from engine.moves.enqueue import Submission
from engine.queries.jobs import JobVersion
from engine.storage import batcher
from engine.storage import connections as db
from engine.tables.idempotency import IdempotencyKey
from ops.waiting import until
from tests.support.database import new
from tests.support.web_harness import JOB, WebHarness, get, served, submit
from web import store
from web.background import running
from web.watcher import Watcher

Conn = AsyncConnection[Any]

PRESETS = ("a", "b")


async def post(client: Any, body: Any = JOB) -> tuple[int, dict[str, str]]:
    async with client.post("/pipeline/run", json=body) as response:
        await response.read()
        return response.status, dict(response.headers)


async def closed_down(database_url: str) -> str:
    """The name of the database, which from now on takes no connection and has none."""
    name = str(conninfo_to_dict(database_url)["dbname"])
    elsewhere = make_conninfo(database_url, dbname="template1")
    async with await AsyncConnection.connect(elsewhere, autocommit=True) as conn:
        await conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
    return name


async def test_503_within_a_bounded_time_while_the_database_is_down(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "CONNECT_SECONDS", 1)
    async with served(database_url) as web_harness:
        client = await web_harness.client()
        name = await closed_down(database_url)

        async def refused(method: str, path: str) -> None:
            async with client.request(method, path, json=JOB if method == "POST" else None) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                if path != "/readyz":
                    assert name not in await response.text()

        async with asyncio.timeout(5):
            await asyncio.gather(
                refused("POST", "/pipeline/run"),
                refused("GET", f"/pipeline/job/{uuid4()}"),
                refused("GET", "/pipeline/jobs"),
                refused("GET", f"/pipeline/job/{uuid4()}/events"),
                refused("GET", "/readyz"),
            )
            async with client.get("/healthz") as response:
                assert response.status == 200


async def test_connections_that_broke_are_opened_again_and_nothing_is_lost_or_doubled(
    web_harness: WebHarness, conn: Conn
) -> None:
    client = await web_harness.client()
    job_id = await submit(client)
    accepted = 1
    for _ in range(5):
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(post(client) for _ in range(20)))
        assert {status for status, _ in answers} == {202}
        accepted += len(answers)
        assert (await get(client, job_id))["status"] == "pending"
    row = await (
        await conn.execute(
            "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM outbox),"
            " (SELECT count(*) FROM job_state_records)"
        )
    ).fetchone()
    assert row == (accepted, accepted, accepted)


async def test_only_jobs_that_were_written_are_counted_and_only_due_ones_wake_workers(
    database_url: str,
) -> None:
    def counted() -> float:
        return sum(
            REGISTRY.get_sample_value("outrider_jobs_enqueued_total", {"preset": p}) or 0.0 for p in PRESETS
        )

    async def told(ears: AsyncConnection[Any]) -> AsyncIterator[set[str]]:
        """What workers that wait have been told since the last call."""
        await ears.execute("SELECT pg_notify('outrider_ready', 'last')")
        async for hint in ears.notifies(timeout=5):
            if hint.payload == "last":
                return
            yield set(hint.payload.split())

    async def submit_each(*submissions: Submission) -> tuple[float, list[set[str]]]:
        before = counted()
        await asyncio.gather(*(opened.submit(each) for each in submissions), return_exceptions=True)
        return counted() - before, [presets async for presets in told(ears)]

    key = IdempotencyKey("ann", "run", "k", b"1" * 32)
    now = datetime.now(UTC)
    async with (
        await AsyncConnection.connect(database_url, autocommit=True) as ears,
        store.open_store(database_url, lambda _presets=(): None) as opened,
    ):
        await ears.execute("LISTEN outrider_ready")
        await ears.execute("SELECT setval('hints_wanted_until', 9999999999)")
        assert await submit_each(Submission((new(preset="a"), new(preset="b")), key)) == (2, [{"a", "b"}])
        assert await submit_each(Submission((new(preset="a"), new(preset="b")), key)) == (0, [])
        assert await submit_each(Submission((new(preset="a"),), key._replace(fingerprint=b"2" * 32))) == (
            0,
            [],
        )
        later = (new(preset="a", delay_seconds=60), new(preset="b", run_at=now + timedelta(hours=1)))
        assert await submit_each(Submission(later)) == (2, [])
        assert await submit_each(Submission((new(preset="b", run_at=now - timedelta(hours=1)),))) == (
            1,
            [{"b"}],
        )


async def test_no_request_fails_after_the_server_has_ended_every_idle_connection(
    web_harness: WebHarness, conn: Conn
) -> None:
    """As after a restart of the database that ended before the request came."""
    client = await web_harness.client()
    job_id = await submit(client)
    paths = (f"job/{job_id}", f"job/{job_id}/history", "jobs", "jobs?status=pending", f"job/{job_id}/explain")

    async def asked(path: str) -> int:
        async with client.get(f"/pipeline/{path}") as response:
            await response.read()
            return response.status

    # So many at once fill the pool.
    for _ in range(2):
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(asked(path) for path in paths * 8))
        assert set(answers) == {200}
        await conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await asked("jobs") == 200
    async with client.post(f"/pipeline/job/{job_id}/cancel") as response:
        assert response.status == 200


async def test_a_group_that_waits_for_a_lock_is_answered_503_in_time(
    web_harness: WebHarness, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ANSWER_SECONDS", 0.3)
    client = await web_harness.client()
    async with conn.transaction():
        await conn.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        status, headers = await post(client)
        assert (status, headers["Retry-After"]) == (503, "1")
    monkeypatch.setattr(web_harness.store._submissions, "_patience", 10)
    assert (await post(client))[0] == 202


async def test_503_where_too_many_submissions_wait(
    web_harness: WebHarness, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "MAX_WAITING", 5)
    client = await web_harness.client()
    async with asyncio.timeout(10):
        async with conn.transaction():
            await conn.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            first = asyncio.create_task(post(client))
            await until(lambda: web_harness.store._submissions._writer is not None)
            rest = [asyncio.create_task(post(client)) for _ in range(12)]
            refused = [await next(asyncio.as_completed(rest))]
            await until(lambda: sum(each.done() for each in rest) >= 7)
        answers = [await first, *(await asyncio.gather(*rest))]
    assert refused[0][0] == 503
    assert [status for status, _ in answers].count(503) == 7
    assert [status for status, _ in answers].count(202) == 6


async def test_503_where_submissions_of_too_many_bytes_wait(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_WAITING_BYTES", 1000)
    async with served(database_url) as web_harness, asyncio.timeout(10):
        client = await web_harness.client()
        body = JOB | {"metadata": {"a": "é" * 500}}
        async with conn.transaction():
            await conn.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            first = asyncio.create_task(post(client))
            await until(lambda: web_harness.store._submissions._writer is not None)
            await until(lambda: len(web_harness.store._submissions) == 0)
            second = asyncio.create_task(post(client, body))
            await until(lambda: len(web_harness.store._submissions) == 1)
            status, headers = await post(client)
            assert (status, headers["Retry-After"]) == (503, "1")
        assert [(await each)[0] for each in (first, second)] == [202, 202]


async def test_a_statement_that_fails_for_good_is_a_500_with_its_traceback_in_the_log(
    web_harness: WebHarness, conn: Conn
) -> None:
    client = await web_harness.client()
    job_id = await submit(client)
    await conn.execute("ALTER TABLE jobs RENAME TO away")
    await conn.execute("ALTER VIEW job_status RENAME TO job_status_away")
    for method, path in (("POST", "run"), ("GET", f"job/{job_id}"), ("GET", "jobs")):
        body = JOB if method == "POST" else None
        with capture_logs() as lines:
            async with client.request(method, f"/pipeline/{path}", json=body) as response:
                assert (response.status, response.headers.get("Retry-After")) == (500, None), path
                assert "away" not in await response.text()
        [failed] = [line for line in lines if line["event"] == "request.failed"]
        assert isinstance(failed["exc_info"], psycopg.errors.UndefinedTable)


@pytest.mark.parametrize(
    "mishap",
    [
        "ALTER TABLE outbox RENAME COLUMN priority TO urgency",
        "DROP VIEW job_status; DROP TABLE job_results",
        "DROP SEQUENCE outbox_position CASCADE",
        "ALTER TABLE jobs ADD COLUMN more text NOT NULL DEFAULT ''; ALTER TABLE jobs ALTER more DROP DEFAULT",
    ],
    ids=["a renamed column", "a missing table", "a missing default", "a column that nobody fills"],
)
async def test_a_fault_of_our_own_is_never_answered_come_back(
    web_harness: WebHarness, conn: Conn, mishap: str
) -> None:
    client = await web_harness.client()
    job_id = await submit(client)
    await conn.execute(mishap.encode())
    statuses = {(await post(client))[0]}
    async with client.get(f"/pipeline/job/{job_id}") as response:
        statuses.add(response.status)
    assert statuses - {200, 202} == {500}


@pytest.mark.parametrize(
    "obstacle",
    ["ALTER DATABASE {} SET default_transaction_read_only = on", "ALTER DATABASE {} SET lock_timeout = 50"],
    ids=["read-only", "a lock"],
)
async def test_an_obstacle_that_passes_is_a_503(database_url: str, conn: Conn, obstacle: str) -> None:
    await conn.execute(obstacle.format(conn.info.dbname).encode())
    async with served(database_url) as web_harness, conn.transaction():
        await conn.execute("LOCK TABLE jobs IN SHARE MODE")
        client = await web_harness.client()
        status, headers = await post(client)
        assert (status, headers["Retry-After"]) == (503, "1")


async def test_cancelling_what_is_being_written_is_a_503_and_readiness_stays_green(
    web_harness: WebHarness, conn: Conn
) -> None:
    client = await web_harness.client()
    job_id = await submit(client)

    async def cancelled() -> tuple[int, str | None, str]:
        async with client.post(f"/pipeline/job/{job_id}/cancel") as response:
            return response.status, response.headers.get("Retry-After"), (await response.json())["detail"]

    async with asyncio.timeout(20):
        async with conn.transaction():
            await conn.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [job_id])
            waiting = [asyncio.create_task(cancelled()) for _ in range(store.POOL_SIZE + 5)]
            await until(lambda: web_harness.store._pool.get_stats()["requests_waiting"] > 0)
            async with client.get("/readyz") as response:
                assert response.status == 200
            assert not any(each.done() for each in waiting)
            detail = "The job's outcome is being written at this moment. Try again shortly."
            assert set(await asyncio.gather(*waiting)) == {(503, "1", detail)}
        async with client.post(f"/pipeline/job/{job_id}/cancel") as response:
            assert response.status == 200


async def test_what_the_door_let_through_and_postgresql_refuses_is_a_422_alone(
    web_harness: WebHarness, conn: Conn
) -> None:
    """Should a check be missing, its neighbours in the group are still accepted."""
    await conn.execute("ALTER TABLE jobs ADD CHECK (content <> 'planted')")
    client = await web_harness.client()

    async def status(content: str) -> int:
        async with client.post("/pipeline/run", json=JOB | {"content": content}) as response:
            return int(response.status)

    # The console takes seconds to lay out the traceback of the 422, and the requests would time out meanwhile.
    async with asyncio.timeout(10):
        with capture_logs():
            assert await asyncio.gather(*(status("planted" if n == 7 else "x") for n in range(20))) == [
                422 if n == 7 else 202 for n in range(20)
            ]


# The watcher


async def test_one_look_asks_once_for_each_job_and_wakes_only_what_changed() -> None:
    looks: list[list[UUID]] = []
    versions: dict[UUID, int] = {}

    async def pulse(ids: Sequence[UUID]) -> dict[UUID, JobVersion]:
        looks.append(list(ids))
        return {each: JobVersion(versions[each], 0, JobState.PENDING) for each in ids if each in versions}

    watcher = Watcher(pulse, look_seconds=0.01)
    quiet, busy, gone = uuid4(), uuid4(), uuid4()
    versions |= {quiet: 0, busy: 0}
    async with asyncio.timeout(5), running("watch", watcher.run):
        with watcher.watch(quiet) as first, watcher.watch(busy) as second, watcher.watch(busy) as third:
            waiting = [asyncio.create_task(watch.wait((0, 0), 4)) for watch in (first, second, third)]
            await until(lambda: len(looks) > 3)
            assert not any(task.done() for task in waiting)
            versions[busy] = 1
            assert [await waiting[1], await waiting[2]] == [True, True]
            assert not waiting[0].done()
            assert await second.wait((0, 0), 4), "what changed before the wait began is noticed"
            assert not await second.wait((1, 0), 0.05)
            waiting[0].cancel()
        with watcher.watch(gone) as watch:
            assert await watch.wait((0, 0), 4), "a job that is gone has changed"
    assert {len(look) for look in looks} <= {1, 2}
    assert len(watcher) == 0


async def test_nothing_is_asked_while_nobody_watches_and_a_failed_look_is_only_late() -> None:
    looks = 0

    async def pulse(_ids: Sequence[UUID]) -> dict[UUID, JobVersion]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise psycopg.OperationalError("broken")
        return {}

    watcher = Watcher(pulse, look_seconds=0.01)
    async with asyncio.timeout(5), running("watch", watcher.run):
        with watcher.watch(uuid4()) as watch:
            assert await watch.wait((0, 0), 4)
        seen = looks
        await until(lambda: not watcher._watched.is_set())
        assert looks == seen == 2


async def test_a_bug_in_one_look_is_logged_and_the_next_look_wakes_its_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every web process would end at the same job, with all the requests that it serves."""
    monkeypatch.setattr("engine.process.loops.PAUSE_SECONDS", 0.01)
    bugs = [TypeError("a bug"), TypeError("a bug")]

    async def pulse(_ids: Sequence[UUID]) -> dict[UUID, JobVersion]:
        if bugs:
            raise bugs.pop()
        return {}

    watcher = Watcher(pulse, look_seconds=0.01)
    with capture_logs() as lines:
        async with asyncio.timeout(5), running("watch", watcher.run):
            with watcher.watch(uuid4()) as watch:
                assert await watch.wait((0, 0), 4)
    assert [(line["event"], line["loop"], str(line["exc_info"])) for line in lines] == [
        ("loop.failed", "watch", "a bug")
    ] * 2
