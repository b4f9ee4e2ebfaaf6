"""`/autoscale` and `/metrics` on the admin port: what they say, and how little they ask of the database."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from prometheus_client import REGISTRY

from engine.errors import DatabaseUnavailable
from engine.moves.enqueue import enqueue
from engine.process import autoscale
from engine.process.admin import admin_server
from engine.process.autoscale import Autoscale
from engine.queries.queue_stats import QueueStats, queue_stats
from engine.settings import load
from engine.storage import throttle
from engine.storage.connections import open_pool
from engine.storage.throttle import COST
from engine.telemetry.metrics import RUN_SECONDS
from ops.waiting import until
from tests.support.clock import set_clock
from tests.support.database import Conn, new, worker


async def get(port: int, path: str, **headers: str) -> tuple[int, Any]:
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession(headers=headers) as client,
        client.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await (response.json() if path == "/autoscale" else response.text())


async def looks() -> float:
    labels = {"statement": "count jobs"}
    return REGISTRY.get_sample_value("outrider_database_statement_seconds_count", labels) or 0.0


async def test_autoscale_reports_the_backlog_and_the_workers_that_it_needs(
    database_url: str, conn: Conn
) -> None:
    await worker(conn)
    await conn.execute("UPDATE workers SET throughput = '{\"p\": 0.1}'")
    for _ in range(12):
        await enqueue(conn, new())
    await conn.execute("UPDATE outbox SET ready_at = now() - interval '100 s'")
    async with admin_server(load({}, admin_port=0, database_url=database_url), "web", {}) as port:
        status, said = await get(port, "/autoscale")
    assert status == 200
    assert said["presets"]["p"].pop("oldest_age_seconds") == pytest.approx(100, abs=10)
    assert said["presets"] == {"p": {"backlog": 12, "drain_per_second": 0.1, "desired_workers": 2}}
    assert (said["backlog"], said["desired_workers"]) == (12, 2)
    assert said["sampled_at"].endswith("Z")


async def test_however_often_it_is_asked_the_database_is_looked_at_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.process.autoscale.LOOK_SECONDS", 60.0)
    before = await looks()
    async with admin_server(load({}, admin_port=0, database_url=database_url), "web", {}) as port:
        answers = await asyncio.gather(*(get(port, "/autoscale") for _ in range(20)))
        answers += [await get(port, "/autoscale") for _ in range(5)]
    assert {status for status, _ in answers} == {200}
    assert await looks() == before + 1


async def test_a_look_that_waited_for_a_lock_puts_the_next_off_for_what_it_can_have_cost(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = set_clock(monkeypatch, autoscale)
    monkeypatch.setattr(throttle, "time", clock)
    waits = [3600.0]

    async def slow(conn: Conn) -> QueueStats:
        clock.now += waits.pop() if waits else 0.0
        return await queue_stats(conn)

    monkeypatch.setattr(autoscale, "queue_stats", slow)
    asked = Autoscale(load({}, database_url=database_url))
    before = await looks()
    await asked.answer()
    clock.now += COST * autoscale.MAX_LOOK_SECONDS - 0.125
    await asked.answer()
    assert await looks() == before + 1
    clock.now += 0.125
    await asked.answer()
    assert await looks() == before + 2
    await asked.aclose()


async def test_the_last_answer_is_good_for_a_minute_and_then_there_is_none(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.process.autoscale.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("engine.storage.throttle.COST", 0.0)
    scale = Autoscale(load({}, database_url=database_url))
    first = await scale.answer()
    await conn.execute("ALTER TABLE outbox RENAME TO elsewhere")
    assert await scale.answer() == first
    monkeypatch.setattr("engine.process.autoscale.STALE_SECONDS", 0.0)
    with pytest.raises(DatabaseUnavailable):
        await scale.answer()
    monkeypatch.setattr("engine.process.autoscale.STALE_SECONDS", 60.0)
    await conn.execute("ALTER TABLE elsewhere RENAME TO outbox")
    assert (await scale.answer())["sampled_at"] > first["sampled_at"]
    await scale.aclose()


async def test_without_a_database_the_answer_is_503() -> None:
    settings = load({}, admin_port=0, database_url="postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")
    async with admin_server(settings, "web", {}) as port:
        status, said = await get(port, "/autoscale")
    assert (status, said["status"]) == (503, "unavailable")


async def test_a_scrape_asks_the_database_nothing(database_url: str, conn: Conn) -> None:
    """PostgreSQL remembers when each session was last active: a scrape must leave all of that as it is."""

    async def activity() -> list[Any]:
        rows = await conn.execute(
            "SELECT pid, state_change FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY pid"
        )
        return await rows.fetchall()

    settings = load({}, admin_port=0, database_url=database_url)
    async with open_pool(database_url, name="web", size=2) as pool, admin_server(settings, "web", {}) as port:
        await get(port, "/autoscale")
        async with pool.connection() as borrow:
            await borrow.execute("SELECT 1")
        await until(lambda: pooled(idle=1))
        before = await activity()
        scrapes = [await get(port, "/metrics") for _ in range(10)]
        assert await activity() == before
    assert len(before) == 2
    assert 'outrider_database_pool_connections{pool="web",state="idle"} 1.0' in scrapes[0][1]


async def pooled(idle: float) -> bool:
    labels = {"pool": "web", "state": "idle"}
    return REGISTRY.get_sample_value("outrider_database_pool_connections", labels) == idle


async def test_a_process_tells_what_it_is_how_it_is_set_and_how_late_its_loop_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.process.admin.LAG_SECONDS", 0.01)

    async def lags() -> bool:
        return (REGISTRY.get_sample_value("outrider_event_loop_lag_seconds_count") or 0) > before

    before = REGISTRY.get_sample_value("outrider_event_loop_lag_seconds_count") or 0
    async with admin_server(load({}, admin_port=0, lease_seconds=7), "relay", {}) as port:
        await until(lags)
        _, shown = await get(port, "/metrics")
    assert 'outrider_build_info{role="relay",transport="postgres",version="' in shown
    assert 'outrider_config_info{drain_seconds="25.0",lease_seconds="7.0",log_level="info",' in shown


async def test_an_exemplar_names_the_trace_where_a_scraper_can_read_it() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    child = RUN_SECONDS.labels("traced")
    for _ in range(3):
        child.traced(0.2, f"00-{trace}-00f067aa0ba902b7-01")
    child.traced(0.2, None)
    async with admin_server(load({}, admin_port=0), "worker", {}) as port:
        _, openmetrics = await get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        _, text = await get(port, "/metrics")
    [line] = [line for line in openmetrics.splitlines() if 'preset="traced"' in line and " # {" in line]
    assert line.startswith('outrider_attempt_run_seconds_bucket{le="0.25",preset="traced"} 4.0 # {trace_id="')
    assert trace in line
    assert trace not in text
