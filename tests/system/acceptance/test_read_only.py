"""On a standby everything can be read, and whatever has to write says that it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import AsyncConnection, sql

import migrations
from engine.errors import DatabaseUnavailable, SchemaMismatch
from engine.moves.enqueue import enqueue
from engine.tables.relay_status import RelayStatus, report
from migrations.readiness import open_checks
from ops.waiting import until
from tests.support.database import new
from tests.support.standby import Pair, replicated
from tests.support.web_harness import REGISTRY, ManualWorker, WebHarness, served


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with replicated() as made:
        yield made


async def readiness(harness: WebHarness) -> tuple[int, dict[str, str]]:
    async with (await harness.client()).get("/readyz") as response:
        return response.status, (await response.json())["checks"]


async def test_a_standby_answers_every_read_and_refuses_every_write_with_a_503(pair: Pair) -> None:
    async with await AsyncConnection.connect(pair.primary, autocommit=True) as conn:
        job = await enqueue(conn, new(preset="echo"))
        worker = await ManualWorker.register(conn, REGISTRY)
        await worker.progress(await worker.claim(), 1, 0.5, "half")
        await report(conn, "h:1", [RelayStatus("maintenance", "maintaining", 60, None)])
        async with served(pair.standby) as harness:
            client = await harness.client()

            async def read(path: str) -> Any:
                async with client.get(f"/pipeline/{path}") as response:
                    return response.status, await response.json()

            async def replayed() -> Any:
                status, body = await read(f"job/{job.id}")
                return status == 200 and body["progress"] == {"fraction": 0.5, "message": "half"}

            await until(replayed)
            for path in ("jobs", f"job/{job.id}/history", f"job/{job.id}/explain", "jobs?status=processing"):
                assert (await read(path))[0] == 200, path
            assert (await harness.store._versions([job.id]))[job.id].progress_n == 1
            for path in ("run", f"job/{job.id}/cancel", f"job/{job.id}/retry"):
                body = {"preset": "echo", "content": "x"} if path == "run" else None
                async with client.post(f"/pipeline/{path}", json=body) as response:
                    assert (response.status, response.headers["Retry-After"]) == (503, "1"), path
            status, checks = await readiness(harness)
    assert status == 503
    assert {name for name, answer in checks.items() if answer != "ok"} == {"writable"}
    assert checks["writable"].startswith("the server is a standby")


@pytest.mark.parametrize("process", ["web", "worker", "relay"])
async def test_no_process_is_ready_while_the_database_is_read_only(
    database_url: str, conn: AsyncConnection[Any], process: str
) -> None:
    name = sql.Identifier(conn.info.dbname)
    await conn.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    async with open_checks(database_url, process) as checks:
        with pytest.raises(DatabaseUnavailable, match="default_transaction_read_only is on"):
            await checks["writable"]()


async def test_the_schema_of_a_read_only_database_cannot_be_changed_and_need_not_be_if_it_is_complete(
    pair: Pair, empty_database_url: str
) -> None:
    assert migrations.up(pair.standby) == []
    with pytest.raises(SchemaMismatch, match="use the primary"):
        migrations.down(pair.standby)
    async with await AsyncConnection.connect(empty_database_url, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        await conn.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    with pytest.raises(SchemaMismatch, match="reset default_transaction_read_only"):
        migrations.up(empty_database_url)
