"""Readiness needs the connections that the work needs, and says which limit keeps them away."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from engine.errors import OutriderError
from ops.waiting import until
from tests.support.web_harness import JOB, served
from tests.support.worker_harness import WorkerHarness, preset

Conn = AsyncConnection[Any]
ROLE = f"crowded {os.getpid()}"
TOO_MANY = f'too many connections for role "{ROLE}"'


@pytest.fixture
async def url(database_url: str, conn: Conn) -> Any:
    """The test's database, as a role that may have a limited number of connections."""
    await conn.execute(f'CREATE ROLE "{ROLE}" LOGIN'.encode())
    for kind in ("TABLES", "SEQUENCES"):
        await conn.execute(f'GRANT ALL ON ALL {kind} IN SCHEMA public TO "{ROLE}"'.encode())
    yield make_conninfo(database_url, user=ROLE)
    await conn.execute(f'DROP OWNED BY "{ROLE}"; DROP ROLE "{ROLE}"'.encode())


async def limit(conn: Conn, connections: int) -> None:
    await conn.execute(f'ALTER ROLE "{ROLE}" CONNECTION LIMIT {connections}'.encode())


async def why(ready: Callable[[], Awaitable[None]]) -> str:
    """Why the check fails; empty if it does not."""
    try:
        await ready()
    except OutriderError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("connections", [2, 3])
async def test_web_is_ready_only_with_the_connections_for_submissions_and_reads(
    url: str, conn: Conn, connections: int
) -> None:
    await limit(conn, connections)
    async with served(url) as harness:
        client = await harness.client()

        async def checks() -> tuple[int, str]:
            async with client.get("/readyz") as response:
                return response.status, (await response.json())["checks"]["connections"]

        status, said = await checks()
        assert (status, TOO_MANY in said) == (503, True), said
        if connections == 2:
            async with client.post("/pipeline/run", json=JOB) as response:
                assert response.status == 503
        await limit(conn, -1)

        async def well() -> bool:
            return await checks() == (200, "ok")

        await until(well)
        async with client.post("/pipeline/run", json=JOB) as response:
            assert response.status == 202


@pytest.mark.parametrize("connections", [0, 2, 3])
async def test_a_worker_is_ready_only_with_its_lease_and_the_connections_to_claim_and_to_record(
    url: str, conn: Conn, harness: WorkerHarness, connections: int
) -> None:
    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    await limit(conn, connections)
    async with harness.worker(work, url=url) as worker:
        # Until then the connections that come first are not all there.
        taken = "SELECT 1 FROM pg_stat_activity WHERE usename = %s HAVING count(*) >= %s"
        await harness.row(taken, ROLE, connections)
        assert await why(worker.consumer.ready)
        await limit(conn, -1)

        async def well() -> bool:
            return not await why(worker.consumer.ready)

        await until(well)


async def test_a_relay_is_ready_only_with_the_connections_of_its_maintenance(
    url: str, conn: Conn, harness: WorkerHarness
) -> None:
    limited = WorkerHarness(url, conn, harness.pool, harness.effects)
    await limit(conn, 0)
    async with limited.maintenance() as maintenance:

        async def said() -> bool:
            return TOO_MANY in await why(maintenance.ready)

        async def well() -> bool:
            return not await why(maintenance.ready)

        await until(said)
        await limit(conn, -1)
        await until(well)
