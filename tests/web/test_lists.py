"""Lists under load: each has a limit, each owner a share, and nobody waits for another owner's lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from psycopg import AsyncConnection

from engine.errors import Overloaded
from engine.storage.connections import Pool, borrow, open_pool
from ops.waiting import until
from tests.support.web_harness import WebHarness, get, submit
from web import lists, store
from web.lists import AT_ONCE, OWN_AT_ONCE, OWN_WAITING, Lists, ListTooLong

Conn = AsyncConnection[Any]

# A preset that few of an owner's many jobs have, and results of which none has it.
MANY: str = """
WITH job AS (
    INSERT INTO jobs (id, user_id, preset, content)
    SELECT outrider_uuid7(), %(owner)s, CASE n WHEN 1 THEN 'rare' ELSE 'echo' END, 'x'
    FROM generate_series(1, %(jobs)s) n
    RETURNING id, user_id, preset, run_at
), result AS (
    INSERT INTO job_results (job_id, user_id, state, attempt, errors, crashes, version, run_at)
    SELECT id, user_id, 'COMPLETED', 1, 0, 0, 2, run_at FROM job WHERE preset = 'echo'
), entry AS (
    INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
    SELECT id, user_id, preset, 2, 'ready', run_at, now() FROM job WHERE preset = 'rare'
)
INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason) SELECT id, 0, 'PENDING', 0, 'enqueued' FROM job
"""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url, name="test", size=store.POOL_SIZE) as pool:
        yield pool


async def listed(client: Any, **parameters: Any) -> tuple[int, Any]:
    async with client.get("/pipeline/jobs", params=parameters) as response:
        return response.status, await response.json()


async def test_an_owner_has_a_share_of_the_lists_and_the_next_of_his_waits_its_turn(pool: Pool) -> None:
    shared = Lists(pool)

    async def used(owner: str) -> str:
        async with shared.connection(owner) as conn:
            await conn.execute("SELECT 1")
        return owner

    async with asyncio.timeout(10):
        async with AsyncExitStack() as held:
            for _ in range(OWN_AT_ONCE):
                await held.enter_async_context(shared.connection("ann"))
            waiting = [asyncio.create_task(used("ann")) for _ in range(OWN_WAITING)]
            await until(lambda: len(shared) == OWN_AT_ONCE + OWN_WAITING)
            with pytest.raises(Overloaded):
                await used("ann")
            assert await used("bob") == "bob"
            assert not any(each.done() for each in waiting)
        assert await asyncio.gather(*waiting) == ["ann"] * OWN_WAITING
    assert len(shared) == 0
    assert not shared._shares, "an owner without lists is forgotten"


async def test_lists_of_all_owners_leave_connections_for_everything_else(pool: Pool) -> None:
    shared = Lists(pool)
    assert AT_ONCE < store.POOL_SIZE
    async with asyncio.timeout(10), AsyncExitStack() as held:
        for n in range(AT_ONCE):
            await held.enter_async_context(shared.connection(f"owner {n}"))
        further = asyncio.create_task(held.enter_async_context(shared.connection("one more")))
        await until(lambda: len(shared) == AT_ONCE + 1)
        async with borrow(pool) as conn:
            await conn.execute("SELECT 1")
        assert not further.done()
        further.cancel()


async def test_a_list_waits_for_its_turn_no_longer_than_is_bearable(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_SECONDS", 0.05)
    shared = Lists(pool)
    async with asyncio.timeout(10), AsyncExitStack() as held:
        for _ in range(OWN_AT_ONCE):
            await held.enter_async_context(shared.connection("ann"))
        with pytest.raises(Overloaded):
            await held.enter_async_context(shared.connection("ann"))


async def test_the_limit_of_a_list_ends_with_the_list_and_its_connection_is_kept(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "SECONDS", 0.05)
    async with asyncio.timeout(10), open_pool(database_url, name="test", size=1) as pool:
        with pytest.raises(ListTooLong):
            async with Lists(pool).connection("ann") as limited:
                await limited.execute("SELECT pg_sleep(60)")
        async with borrow(pool) as conn:
            assert conn is limited
            assert await (await conn.execute("SHOW statement_timeout")).fetchone() == ("0",)


async def test_a_list_that_reads_too_much_says_how_to_narrow_it(
    ann: Any, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await conn.execute(MANY.encode(), {"owner": "ann", "jobs": 50_000})
    monkeypatch.setattr(lists, "SECONDS", 0.001)
    for parameters, advice in (({}, "status"), ({"status": "completed"}, "cursor")):
        status, problem = await listed(ann, preset="rare", **parameters)
        assert status == 422
        [fault] = problem["errors"]
        assert fault["pointer"] == "/preset"
        assert f"`{advice}`" in fault["detail"]
    monkeypatch.undo()
    status, page = await listed(ann, preset="rare")
    assert (status, len(page["jobs"])) == (200, 1)


async def test_a_list_that_the_database_is_too_busy_for_may_be_asked_again(
    ann: Any, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(ann)
    monkeypatch.setattr(lists, "SECONDS", 0.05)
    async with conn.transaction():
        await conn.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        async with ann.get("/pipeline/jobs") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")


async def test_other_owners_read_while_one_owners_slow_lists_run(
    web_harness: WebHarness, ann: Any, bob: Any, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the lists looks at 40,000 results, and finds none with the preset."""
    monkeypatch.setattr(lists, "TURN_SECONDS", 60)
    await conn.execute(MANY.encode(), {"owner": "ann", "jobs": 40_000})
    await conn.execute("VACUUM ANALYZE")
    job_id = await submit(bob)
    slow, refused = OWN_AT_ONCE + OWN_WAITING, 10
    async with asyncio.timeout(60):
        running = [
            asyncio.create_task(listed(ann, preset="rare", status="completed")) for _ in range(slow + refused)
        ]
        await until(lambda: len(web_harness.store.lists) == slow)
        status, page = await listed(bob)
        assert (status, [job["job_id"] for job in page["jobs"]]) == (200, [job_id])
        assert len((await get(bob, job_id, "/history"))["history"]) == 1
        assert sum(each.done() for each in running) < refused + slow // 3
        answers = [status for status, _ in await asyncio.gather(*running)]
    assert answers.count(503) == refused
    assert answers.count(200) + answers.count(422) == slow
