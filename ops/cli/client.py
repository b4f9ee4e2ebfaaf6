"""A client of the HTTP API: submits, follows and reads jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import aiohttp
import orjson

from engine.model import JobState

ENDED: Final = frozenset(state.lower() for state in JobState if state.terminal)

SILENCE_SECONDS: Final = 45.0
"""The time of three pings of an event stream."""
PATIENCE_SECONDS: Final = 30.0
"""How long the client retries while a web process is away or overloaded."""
PAUSE_SECONDS: Final = 0.5

Event = tuple[str, dict[str, Any]]


class ClientError(Exception):
    """The web process refused the request or cannot be reached. `str(self)` says why."""


class Client:
    """An async context manager over one web process at `base`. Raises ClientError."""

    def __init__(self, base: str, token: str) -> None:
        self._base = base
        self._met = False
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=None, connect=5, sock_read=SILENCE_SECONDS),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def submit(self, job: dict[str, Any]) -> dict[str, Any]:
        """Submit a job and return the body of the 202. Retries have the same idempotency key: there is only one job."""
        return await self._call("POST", "/pipeline/run", json=job, headers={"Idempotency-Key": str(uuid4())})

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self._call("GET", f"/pipeline/job/{job_id}")

    async def follow(self, job_id: str) -> AsyncIterator[Event]:
        """Yield ("status" | "progress", data) for each event until the job has ended."""
        seen = ""
        while True:
            try:
                async with self._session.get(
                    f"{self._base}/pipeline/job/{job_id}/events", headers={"Last-Event-ID": seen}
                ) as response:
                    async for id_, event in _events(response):
                        seen = id_ or seen
                        yield event
            except (aiohttp.ClientError, TimeoutError):
                # The job goes on without this stream. The read below raises ClientError if no web process answers.
                pass
            if (await self.job(job_id))["status"] in ENDED:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                async with self._session.request(method, self._base + path, **options) as response:
                    body = await response.read()
                self._met = True
                if response.status < HTTPStatus.BAD_REQUEST:
                    return dict(orjson.loads(body))
                problem = _problem(response.status, body)
                again = response.status == HTTPStatus.SERVICE_UNAVAILABLE
            except aiohttp.ClientConnectorError as error:
                # A web process that has answered before may be restarting. One that never answered is not there.
                problem, again = f"no web process answers at {self._base}: {error.strerror}", self._met
            except (aiohttp.ClientError, TimeoutError) as error:
                problem, again = f"{self._base}: {error or type(error).__name__}", True
            except ValueError as error:
                raise ClientError(f"{self._base} does not answer as Outrider does: {error}") from error
            if not again or time.monotonic() > deadline:
                raise ClientError(problem)
            await asyncio.sleep(PAUSE_SECONDS)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Event]]:
    """Yield (id, event) for each block of a stream. Comments are skipped."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\r\n")
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield fields.get("id", ""), (fields.get("event", "message"), orjson.loads(fields["data"]))
            fields = {}


def _problem(status: int, body: bytes) -> str:
    """One line of text from a problem document or from any other answer."""
    try:
        problem = orjson.loads(body)
        said = f"{status} {problem['title']}: {problem['detail']}"
        faults = [f"{fault['pointer'] or '/'}: {fault['detail']}" for fault in problem.get("errors", ())]
        return f"{said.rstrip('.')}: {'; '.join(faults)}" if faults else said
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{status} {body[:200].decode(errors='replace')}"
