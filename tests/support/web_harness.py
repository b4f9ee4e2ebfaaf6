"""The API on a real socket over a real database, its clients, and hands that do a worker's part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

import aiohttp
import orjson
from joserfc import jwt
from joserfc.jwk import OctKey
from psycopg import AsyncConnection
from pydantic import Field

from engine import moves
from engine.model import Attempt, JobState, Reason
from engine.moves import Ending, Release
from engine.pipeline import Metadata, Pipeline, Registry, pipeline
from engine.settings import Settings, load
from engine.tables.outbox import Lane
from engine.tables.progress import Progress, report
from migrations.readiness import open_checks
from web.api import health
from web.app import create_app
from web.auth.keys import open_keys
from web.auth.tokens import Authenticator
from web.background import running
from web.operations import Api
from web.server import serving
from web.store import PostgresStore, open_store

SECRET = "a secret of at least thirty-two bytes"
WAIT = 10.0


class Format(Metadata):
    format: Literal["plain", "markdown"]
    speed: Annotated[int, Field(ge=1, le=9)] = 5


@pipeline("echo", description="Gives back what it got", timeout=30, max_attempts=3)
def echo(job: Any, _run: Any) -> Any:
    return job.content


@pipeline("typed", metadata=Format)
def typed(_job: Any, _run: Any) -> Any:
    return None


pipelines = [echo, typed]
REGISTRY = Registry(pipelines)


def settings(**given: Any) -> Settings:
    return load({}, **({} if given.keys() & {"jwks_url", "jwks_file"} else {"jwt_secret": SECRET}), **given)


def token(
    owner: str = "ann", *, ttl: float = 600, key: Any = SECRET, alg: str = "HS256", **claims: Any
) -> str:
    """A token; a claim of None is left out."""
    header = {"alg": alg} | claims.pop("header", {})
    body = {"sub": owner, "exp": int(time.time() + ttl)} | claims
    key = OctKey.import_key(key) if isinstance(key, str) else key
    return jwt.encode(header, {name: value for name, value in body.items() if value is not None}, key, [alg])


def bearer(owner: str = "ann", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(owner, **claims)}"}


@dataclass
class WebHarness:
    """One served API. `client` is a session that speaks for somebody."""

    port: int
    api: Api
    store: PostgresStore
    stack: AsyncExitStack

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def client(self, owner: str | None = "ann", **claims: Any) -> aiohttp.ClientSession:
        headers = bearer(owner, **claims) if owner is not None else {}
        timeout = aiohttp.ClientTimeout(total=WAIT)
        connector = aiohttp.TCPConnector(limit=0)
        session = aiohttp.ClientSession(self.url, headers=headers, timeout=timeout, connector=connector)
        return await self.stack.enter_async_context(session)


@asynccontextmanager
async def served(
    database_url: str, *, registry: Registry = REGISTRY, **given: Any
) -> AsyncIterator[WebHarness]:
    async with AsyncExitStack() as stack:
        wanted = settings(**given)
        database = await stack.enter_async_context(open_checks(database_url, "web"))
        store = await stack.enter_async_context(open_store(database_url, lambda _presets=(): None))
        await stack.enter_async_context(running("watch", store.watcher.run))
        keys = await stack.enter_async_context(open_keys(wanted))
        draining = asyncio.Event()
        api = Api(
            registry=registry,
            auth=Authenticator(keys, wanted),
            store=store,
            checks=health.checks({**database, "connections": store.ready, **keys.checks}, draining),
            draining=draining,
            publish_results=wanted.publish_results,
            cors_origins=wanted.cors_origins,
        )
        port = await stack.enter_async_context(serving(create_app(api), "127.0.0.1", 0, drain_seconds=5))
        clients = await stack.enter_async_context(AsyncExitStack())
        yield WebHarness(port, api, store, clients)


class ManualWorker:
    """Does a worker's part, one move at a time."""

    def __init__(self, conn: AsyncConnection[Any], worker_id: int) -> None:
        self.conn = conn
        self._worker_id = worker_id

    @classmethod
    async def register(
        cls, conn: AsyncConnection[Any], presets: Mapping[str, Pipeline] = REGISTRY
    ) -> ManualWorker:
        row = await (
            await conn.execute(
                "INSERT INTO workers (name, presets, slots, expires_at)"
                " VALUES ('hands', %s, 1, clock_timestamp() + interval '1 hour') RETURNING id",
                [list(presets)],
            )
        ).fetchone()
        assert row is not None
        return cls(conn, row[0])

    async def claim(self) -> Attempt:
        lanes = [Lane(preset, priority) for preset in REGISTRY for priority in (1, 2, 3, 4)]
        [attempt] = await moves.claim(self.conn, self._worker_id, lanes, 1)
        return attempt

    async def finish(
        self, attempt: Attempt, state: JobState = JobState.COMPLETED, output: Any = None, error: Any = None
    ) -> None:
        ending = Ending(
            job_id=attempt.job.id,
            attempt=attempt.number,
            state=state,
            reason=Reason(state.lower()),
            output=None if output is None else orjson.dumps(output).decode(),
            error=None if error is None else orjson.dumps(error).decode(),
        )
        assert await moves.finish(self.conn, self._worker_id, [ending])

    async def release(self, attempt: Attempt, **given: Any) -> None:
        returned = Release(attempt.job.id, attempt.number, **given)
        assert await moves.release(self.conn, self._worker_id, [returned])

    async def progress(self, attempt: Attempt, n: int, fraction: float, message: str) -> None:
        await report(self.conn, [Progress(attempt.job.id, attempt.number, n, fraction, message)])

    async def fail(self, attempt: Attempt) -> None:
        error = {"type": "ValueError", "message": "no good", "attempt": attempt.number}
        await self.finish(attempt, JobState.FAILED, error=error)


JOB = {"content": "hello", "preset": "echo"}


async def submit(client: aiohttp.ClientSession, **given: Any) -> str:
    """A new job's id."""
    async with client.post("/pipeline/run", json=JOB | given) as response:
        assert response.status == 202, await response.text()
        return str((await response.json())["job_id"])


async def get(client: aiohttp.ClientSession, job_id: str | UUID, path: str = "") -> Any:
    async with client.get(f"/pipeline/job/{job_id}{path}") as response:
        assert response.status == 200, await response.text()
        return await response.json()
