"""The admin server of a process: alive while it answers, ready while its checks pass."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from engine.errors import ConfigurationError
from engine.process.admin import accepting, admin_server
from engine.settings import Settings, load

SETTINGS = load({}, admin_port=0)


async def answer(port: int, path: str) -> tuple[int, str]:
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.text()


async def passes() -> None: ...


async def fails() -> None:
    raise RuntimeError("no lease")


async def hangs() -> None:
    await asyncio.Event().wait()


async def test_a_process_with_failing_checks_is_alive_but_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.process.admin.CHECK_SECONDS", 0.2)
    checks = {"schema": passes, "lease": fails, "disk": hangs}
    async with admin_server(SETTINGS, "worker", checks) as port:
        assert (await answer(port, "/healthz"))[0] == 200
        status, said = await answer(port, "/readyz")
    assert status == 503
    assert '"schema": "ok"' in said
    assert '"lease": "no lease"' in said
    assert "no answer within 0.2 s" in said


async def test_a_process_whose_checks_pass_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.process.admin.PORTS", {"worker": 0})
    async with admin_server(load({}), "worker", {"schema": passes}) as port:
        assert await answer(port, "/readyz") == (200, '{"status": "ok", "checks": {"schema": "ok"}}')
        status, metrics = await answer(port, "/metrics")
    assert status == 200
    assert "outrider_worker_slots" in metrics


async def test_a_process_that_has_been_told_to_stop_is_not_ready() -> None:
    stop = asyncio.Event()
    async with admin_server(SETTINGS, "worker", {"accepting": accepting(stop)}) as port:
        assert (await answer(port, "/readyz"))[0] == 200
        stop.set()
        assert await answer(port, "/readyz") == (
            503,
            '{"status": "unavailable", "checks": {"accepting": "stopping"}}',
        )


async def test_a_port_that_is_taken_is_a_fault_of_the_configuration() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings: Settings = load({}, admin_port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="OUTRIDER_ADMIN_PORT"):
            async with admin_server(settings, "worker", {}):
                raise AssertionError
