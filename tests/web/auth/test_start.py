"""The start of a web process whose keys are not there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from engine.errors import ConfigurationError
from engine.process.run import DONE
from tests.support.web_harness import bearer, settings
from web import __main__ as entry


async def test_a_missing_key_file_stops_the_start_even_without_a_database(tmp_path: Path) -> None:
    given = settings(
        database_url="postgresql://127.0.0.1:1/nowhere", jwks_file=tmp_path / "jwks.json", admin_port=0
    )
    async with asyncio.timeout(20):
        with pytest.raises(ConfigurationError, match=r"OUTRIDER_JWKS_FILE: .*: No such file or directory"):
            await entry.main(given, asyncio.Event())


async def test_an_issuer_that_is_away_stops_no_start_and_shows_in_readiness(
    database_url: str, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "NOTICE_SECONDS", 0.0)
    given = settings(
        database_url=database_url,
        jwks_url="http://127.0.0.1:1/keys",
        http_port=unused_tcp_port,
        admin_port=0,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(entry.main(given, stop))
    async with asyncio.timeout(30), aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as client:
        while True:
            assert not running.done()
            try:
                response = await client.get("/readyz")
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)
        checks = (await response.json())["checks"]
        assert response.status == 503
        assert [name for name, answer in checks.items() if answer != "ok"] == ["keys"]
        async with client.get("/healthz") as alive:
            assert alive.status == 200
        async with client.get("/pipeline/jobs", headers=bearer()) as refused:
            assert refused.status == 401, "an HS256 token needs no key to be refused"
        stop.set()
        assert await running == DONE
