"""A worker's lease is renewed while its loop lives, and is never trusted longer than the database grants it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine.tables.workers import Leased, Registration
from engine.telemetry.throughput import Throughput
from ops.waiting import until
from tests.support.clock import set_clock
from tests.support.database import Conn, blocked, fetchone
from tests.support.wire_proxy import wire_proxy
from worker import lease
from worker.lease import MIN_GAP_SECONDS, Lease

SECONDS = 0.6


class Heard:
    """A lease, kept alive as a consumer would, and its beats."""

    def __init__(self, url: str, seconds: float) -> None:
        self.beats: list[tuple[float, Leased]] = []
        self.lease = Lease(
            url,
            Registration("test", ("p",), 1),
            seconds,
            on_beat=lambda sent, leased: self.beats.append((sent, leased or {})),
            running=lambda: ["a job"],
            throughput=Throughput(),
        )

    async def tick(self, every: float) -> None:
        while True:
            self.lease.tick()
            await asyncio.sleep(every)

    async def beaten(self, times: int) -> None:
        async def look() -> bool:
            return len(self.beats) >= times

        await until(look)


@pytest.fixture(autouse=True)
def never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may stall the event loop for two of these short leases, which would end the tests' process."""
    monkeypatch.setattr(os, "_exit", lambda _code: None)


@asynccontextmanager
async def held(url: str, seconds: float = SECONDS, tick: float = SECONDS / 10) -> AsyncIterator[Heard]:
    heard = Heard(url, seconds)
    ticking = asyncio.create_task(heard.tick(tick))
    heard.lease.start()
    try:
        yield heard
    finally:
        ticking.cancel()
        await asyncio.to_thread(heard.lease.close)


async def expiry(conn: Conn) -> Any:
    return (await fetchone(conn, "SELECT expires_at FROM workers"))[0]


async def test_beats_renew_the_row_and_leaving_removes_it(database_url: str, conn: Conn) -> None:
    async with held(database_url) as heard:
        await heard.beaten(1)
        first = await expiry(conn)
        await heard.beaten(4)
        assert await expiry(conn) > first
        assert (heard.lease.worker_id,) == await fetchone(conn, "SELECT id FROM workers")
    assert await fetchone(conn, "SELECT count(*) FROM workers") == (0,)


async def test_a_row_that_is_gone_brings_a_new_id(database_url: str, conn: Conn) -> None:
    async with held(database_url) as heard:
        await heard.beaten(2)
        old = heard.lease.worker_id
        await conn.execute("DELETE FROM workers")

        async def changed() -> bool:
            return heard.lease.worker_id not in (None, old)

        await until(changed)


async def test_a_lease_that_was_not_renewed_is_not_held_though_its_row_is_there(
    database_url: str, conn: Conn
) -> None:
    async with wire_proxy(database_url) as proxy, held(proxy.url) as heard:
        await heard.beaten(1)
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM workers FOR UPDATE")

            async def lost() -> bool:
                return heard.lease.worker_id is None

            await until(lost)
            assert await fetchone(conn, "SELECT count(*) FROM workers") == (1,)
        beats = len(heard.beats)
        await heard.beaten(beats + 1)
        assert heard.lease.worker_id is not None  # nobody took the row meanwhile


async def test_a_lease_counts_from_the_sending_of_its_heartbeat(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row expires a lease after the heartbeat at the latest, however long the answer takes."""
    clock = set_clock(monkeypatch, lease)
    async with asyncio.timeout(30), held(database_url, seconds=60) as heard:
        await heard.beaten(1)
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM workers FOR UPDATE")
            heard.lease.beat_now()
            await blocked(conn)
            clock.now += 40
        await heard.beaten(2)
        clock.now += 19
        assert heard.lease.worker_id is not None
        clock.now += 1
        assert heard.lease.worker_id is None


async def test_a_beat_may_be_had_at_once(database_url: str) -> None:
    async with held(database_url, seconds=60) as heard:
        await heard.beaten(1)
        began = time.monotonic()
        heard.lease.beat_now()
        await heard.beaten(2)
        assert time.monotonic() - began < 5


async def test_a_burst_of_beats_does_not_make_a_live_loop_look_stalled(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two ticks of a busy loop there is time for many beats that were asked for."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    async with held(database_url, seconds=30, tick=20 * MIN_GAP_SECONDS) as heard:

        async def asked() -> bool:
            heard.lease.beat_now()
            return len(heard.beats) >= 30

        await until(asked)
        assert heard.lease.worker_id is not None
    assert codes == []


async def test_a_silent_loop_is_not_renewed_for_after_a_lease_and_ends_the_process_after_two(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    heard = Heard(database_url, SECONDS)
    began = time.monotonic()
    heard.lease.start()

    async def ended() -> list[int]:
        return codes

    await until(ended)
    assert codes[0] == 1
    assert time.monotonic() - began >= 2 * SECONDS
    assert heard.beats[-1][0] - began < 1.5 * SECONDS
    await asyncio.to_thread(heard.lease.close)


async def test_the_lease_outlives_an_error_that_nobody_foresaw(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.tables import workers

    asked = workers.beat
    faults = [ZeroDivisionError, RuntimeError]

    def beat(*arguments: Any) -> bool:
        if faults:
            raise faults.pop()
        return asked(*arguments)

    monkeypatch.setattr(workers, "beat", beat)
    async with held(database_url) as heard:
        await heard.beaten(3)
    assert not faults


async def test_a_terminated_connection_is_opened_again_under_the_same_id(
    database_url: str, conn: Conn
) -> None:
    async with held(database_url, seconds=1.5) as heard:
        await heard.beaten(1)
        old = heard.lease.worker_id
        await conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'outrider lease'"
            " AND datname = current_database()"
        )
        await heard.beaten(len(heard.beats) + 2)
        assert heard.lease.worker_id == old
