"""What a role may not do is said in words, with the GRANT that helps; and a role with what is asked for can work."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo

import migrations
from engine.errors import SchemaMismatch
from engine.model import Completed, JobState
from engine.moves.enqueue import Accepted, Submission, enqueue_group
from engine.storage.connections import open_pool
from engine.storage.listener import ASK, UNASK
from migrations.readiness import open_checks
from migrations.rights import NEEDS, PROCESSES, check
from ops.waiting import until
from tests.support.database import new
from tests.support.web_harness import get, served, submit
from tests.support.worker_harness import WorkerHarness, preset

Conn = AsyncConnection[Any]
ROLE = f"outrider test {os.getpid()}"
KINDS = {"outbox_position": "SEQUENCE", "hints_wanted_until": "SEQUENCE"}


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """The test's database, as a role without any rights."""
    role = sql.Identifier(ROLE)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP ROLE IF EXISTS {}; CREATE ROLE {} LOGIN").format(role, role))
        yield make_conninfo(database_url, user=ROLE)
        conn.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))


async def grant(conn: Conn, processes: Iterable[str], but: str = "") -> None:
    for process in processes:
        for name, rights in NEEDS[process].items():
            if name != but:
                kind = KINDS.get(name, "TABLE")
                await conn.execute(f'GRANT {rights} ON {kind} {name} TO "{ROLE}"'.encode())


async def checked(url: str, process: str) -> None:
    async with open_checks(url, process):
        pass


@pytest.mark.parametrize("process", NEEDS)
async def test_each_process_says_at_its_start_which_grant_is_missing(
    url: str, conn: Conn, process: str
) -> None:
    with pytest.raises(SchemaMismatch, match=r"lacks .*SELECT on _yoyo_migration.* as the owner"):
        await checked(url, process)
    await grant(conn, [process], but="outbox")
    with pytest.raises(SchemaMismatch) as refused:
        await checked(url, process)
    rights = ", ".join(sorted(NEEDS[process]["outbox"].split(", ")))
    assert refused.value.found == f"the role {ROLE} lacks {rights} on outbox"
    assert refused.value.fix == (
        f'as the owner of the tables, run `GRANT {rights} ON TABLE "public"."outbox" TO "{ROLE}"`'
    )
    await conn.execute(refused.value.fix.split("`")[1].encode())
    await checked(url, process)


async def test_a_right_that_is_taken_away_shows_in_the_readiness(url: str, conn: Conn) -> None:
    await grant(conn, ["web"])
    async with open_checks(url, "web") as checks:
        await checks["rights"]()
        await conn.execute(f'REVOKE USAGE ON SEQUENCE outbox_position FROM "{ROLE}"'.encode())
        with pytest.raises(SchemaMismatch, match=r'GRANT USAGE ON SEQUENCE "public"\."outbox_position"'):
            await checks["rights"]()


async def test_a_role_with_the_rights_of_web_can_do_all_that_web_does(url: str, conn: Conn) -> None:
    await grant(conn, ["web"])
    async with served(url) as harness:
        client = await harness.client()
        job_id = await submit(client)
        async with client.post("/pipeline/run", json={"preset": "echo", "content": "x"}) as response:
            assert response.status == 202
        key = {"Idempotency-Key": "k"}
        for _ in range(2):
            body = {"preset": "echo", "content": "x"}
            async with client.post("/pipeline/run", json=body, headers=key) as response:
                assert response.status == 202
        for path in ("", "/history", "/explain"):
            await get(client, job_id, path)
        for move, status in (("cancel", 200), ("retry", 202), ("cancel", 200)):
            async with client.post(f"/pipeline/job/{job_id}/{move}") as response:
                assert response.status == status
        async with client.get("/readyz") as response:
            assert response.status == 200, await response.text()
        await harness.store._versions([UUID(job_id)])


async def test_a_role_with_the_rights_of_worker_and_relay_can_do_all_that_they_do(
    url: str, conn: Conn
) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> Any:
        run.progress(0.5, "half")
        if run.attempt == 1:
            raise ValueError
        await until(reported)
        return Completed("done", effects=lambda conn: conn.execute("SELECT 1"))

    async def reported() -> bool:
        return await (await conn.execute("SELECT 1 FROM job_progress WHERE attempt = 2")).fetchone() == (1,)

    await grant(conn, ["worker"])
    async with open_pool(url, name="t", size=4) as pool:
        async with open_pool(url, name="t", size=4, reset_on_return=True) as effects:
            harness = WorkerHarness(url, conn, pool, effects)
            job_id = await harness.enqueue()
            async with harness.worker(work, publish_results=True) as worker:
                await harness.row(
                    "UPDATE outbox SET status = 'ready', ready_at = now() WHERE status = 'waiting' RETURNING 1"
                )
                [job] = await harness.ended(job_id)
                await until(ready(worker.consumer.ready))
        assert job.state is JobState.COMPLETED
        await conn.execute(f'DROP OWNED BY "{ROLE}"'.encode())
        await grant(conn, ["relay"])
        harness = WorkerHarness(url, conn, pool, pool)
        async with harness.maintenance(retention_days=1, publish_results=True) as maintenance:
            await until(ready(maintenance.ready))
            for task in maintenance.tasks:
                if task.name not in ("vacuum", "analyze"):
                    async with pool.connection() as each:
                        await task.work(each, 1000)
            await maintenance.sampler.sample()


GUARDED = {
    "functions are nobody's by default": "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
    "some alone may call the functions": "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC",
}


@pytest.fixture
async def before_hints(empty_database_url: str, tmp_path: Path) -> AsyncIterator[Conn]:
    """A database of the version before 0012, with a role that has the rights that web, worker and relay had there."""
    for path in migrations.SQL.glob("*.sql"):
        if path.name < "0012":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    migrations.up(empty_database_url, directory=tmp_path)
    role = sql.Identifier(ROLE)
    async with await AsyncConnection.connect(empty_database_url, autocommit=True) as conn:
        await conn.execute(sql.SQL("DROP ROLE IF EXISTS {}; CREATE ROLE {}").format(role, role))
        await grant(conn, ["web", "worker", "relay"], but="hints_wanted_until")
        yield conn
        await conn.execute(sql.SQL("RESET ROLE; DROP OWNED BY {}; DROP ROLE {}").format(role, role))


@pytest.mark.parametrize("guard", GUARDED.values(), ids=GUARDED)
async def test_who_might_add_jobs_and_work_may_do_so_after_an_upgrade(
    before_hints: Conn, empty_database_url: str, guard: LiteralString
) -> None:
    await before_hints.execute(guard)
    migrations.up(empty_database_url)
    await before_hints.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
    [accepted] = await enqueue_group(before_hints, [Submission((new(),))])
    assert isinstance(accepted, Accepted)
    await before_hints.execute(ASK, {"without": 5.0})
    for process in PROCESSES:
        await check(before_hints, [process])


async def test_who_cannot_work_cannot_ask_for_hints(url: str) -> None:
    async with await AsyncConnection.connect(url) as stranger:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await stranger.execute(UNASK)


def ready(check: Callable[[], Any]) -> Callable[[], Any]:
    async def look() -> bool:
        try:
            await check()
        except Exception:  # noqa: BLE001 - not yet
            return False
        return True

    return look


@contextmanager
def said(*words: str) -> Iterator[None]:
    with pytest.raises(SchemaMismatch) as refused:
        yield
    for word in words:
        assert word in str(refused.value)


async def test_a_role_that_may_not_create_tables_is_told_which_grant_it_takes(
    url: str, empty_database_url: str
) -> None:
    bare = make_conninfo(empty_database_url, user=ROLE)
    with said(f'`GRANT USAGE, CREATE ON SCHEMA "public" TO "{ROLE}"`'):
        migrations.up(bare)
    assert {each.state for each in migrations.status(bare)} == {"pending"}
    with said("SELECT on _yoyo_migration"):
        await checked(url, "web")
    with said("permission denied"):
        migrations.status(url)


async def test_a_role_that_may_use_no_schema_is_not_told_that_the_tables_are_missing(
    url: str, conn: Conn
) -> None:
    await conn.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    with said("can use no schema", f'GRANT USAGE ON SCHEMA … TO "{ROLE}"'):
        await checked(url, "web")
    with said("can use no schema"):
        migrations.up(url)


async def test_only_the_owner_changes_tables_but_anybody_with_rights_learns_that_nothing_is_to_be_changed(
    url: str, conn: Conn
) -> None:
    for table in ("_yoyo_migration", "_migration_checksum"):
        await conn.execute(f'GRANT SELECT ON {table} TO "{ROLE}"'.encode())
    assert migrations.up(url) == []
    with said("permission denied"):
        migrations.down(url)
