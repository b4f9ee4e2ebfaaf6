"""Clients of a web process: jobs of every fate, and every kind of request, at a steady pace."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from tests.system.acceptance import outcome_pipelines as fates

STORIES: Final = 0.5
"""The share of storyboards; the others have the fates that tests.system.acceptance.outcome_pipelines gives them."""
READERS: Final = 0.15
"""The share of visits that only read."""
SCRIPT: Final = "The harbour was quiet.\n\nThen, one by one, the lamps went out. " * 5
PATIENCE_SECONDS: Final = 12.0
CLIENTS: Final = 300
HELD_SECONDS: Final = 1.0


class Load:
    """Sends until it is stopped; what comes back is counted, and nothing is an error: things are being broken."""

    def __init__(self, http: aiohttp.ClientSession, address: str, token: str, rate: float) -> None:
        self.answers: Counter[str] = Counter()
        self._http = http
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pause = 1 / rate
        self._random = random.Random(0)  # noqa: S311
        self._room = asyncio.Semaphore(CLIENTS)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            while True:
                await asyncio.sleep(self._pause)
                if not self._room.locked():
                    clients.create_task(self._client())

    async def _client(self) -> None:
        async with self._room:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._visit()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.answers[type(error).__name__] += 1

    async def _visit(self) -> None:
        """Reads the list; or submits a job and, now and then, goes on with it."""
        preset = self._preset()
        job = {"preset": preset, "content": SCRIPT}
        dice = self._random.random()
        if dice > 1 - READERS:
            await self._call("GET", "jobs")
            return
        if dice < 0.02:
            await self._call("POST", "batch", {"jobs": [job | {"preset": "steady"}] * 5})
            return
        key = {"Idempotency-Key": f"{self._random.randrange(1000)}"} if 0.02 <= dice < 0.1 else {}
        accepted = await self._call("POST", "run", job, **key)
        if not accepted:
            return
        at = f"job/{accepted['job_id']}"
        if preset == "held":
            await asyncio.sleep(HELD_SECONDS)
            await self._call("POST", f"{at}/cancel")
        elif 0.1 <= dice < 0.2:
            await self._call("GET", at, Prefer="wait=5")
        elif 0.2 <= dice < 0.25:
            await self._call("GET", f"{at}/events")
        elif 0.25 <= dice < 0.5:
            path = self._random.choice([f"{at}/history", f"{at}/explain", "presets"])
            await self._call("GET", path)
        elif 0.5 <= dice < 0.52:
            await self._call("GET", at, Authorization="Bearer forged")

    def _preset(self) -> str:
        if self._random.random() < STORIES:
            return "storyboard"
        [preset] = self._random.choices(
            ["steady", *fates.SHARES], [1 - sum(fates.SHARES.values()), *fates.SHARES.values()]
        )
        return preset

    async def _call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's JSON where it is an acceptance."""
        url = f"{self._address}/pipeline/{path}"
        async with self._http.request(method, url, json=body, headers=self._headers | headers) as answer:
            self.answers[str(answer.status)] += 1
            await answer.read()
            return await answer.json() if answer.status == 202 else None


@asynccontextmanager
async def under_load(address: str, token: str, rate: float = 30.0) -> AsyncIterator[Load]:
    """`rate` visits a second while the block runs."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        load = Load(http, address, token, rate)
        task = asyncio.create_task(load.run())
        try:
            yield load
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.wait([task])
