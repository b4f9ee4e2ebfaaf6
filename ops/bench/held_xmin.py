"""The claim while somebody's snapshot keeps every dead row: jobs come, are claimed and finished at full speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from statistics import median
from typing import Final, NamedTuple

import psycopg
from psycopg import IsolationLevel

from engine import workers
from engine.db import Connection, connect
from engine.enqueue import Submission, enqueue_group
from engine.model import Attempt, JobState, NewJob
from engine.moves import Ending, finish
from engine.source import PostgresSource
from ops.bench import processes
from ops.bench.figures import Row, repeated
from ops.bench.plan import Plan
from ops.bench.server import Server

TITLE = "Claim of 500 while a snapshot is held, jobs coming and going at full speed"
PRESET: Final = "noop"
BATCH: Final = 500
AHEAD: Final = 4
"""Batches ready beyond the one that is claimed."""
MOST: Final = 1.5


class Claimed(NamedTuple):
    """One scan: when it ended, and what it took, in seconds."""

    at: float
    took: float
    rows: int
    sweep: bool


class WatchedSource(PostgresSource):
    """Notes what each scan took."""

    def __init__(self, url: str) -> None:
        super().__init__(url, [PRESET])
        self.claims: list[Claimed] = []

    async def _scan(self, worker_id: int, limit: int, *, sweep: bool) -> list[Attempt]:
        began = time.perf_counter()
        found = await super()._scan(worker_id, limit, sweep=sweep)
        now = time.perf_counter()
        self.claims.append(Claimed(now, now - began, len(found), sweep))
        return found


def run(server: Server, plan: Plan) -> Iterator[Row]:
    rows = repeated(plan.repeat, lambda: _measured(server, plan), "ms")
    window = f"{plan.held_window:g} s"
    yield Row(f"cursor claim, first {window}, median", rows["first"].samples, "ms")
    yield Row(f"cursor claim, last {window}, median", rows["last"].samples, "ms")
    yield Row(f"last {window} / first {window}", rows["ratio"].samples, at_most=MOST)
    yield Row(f"sweep, last {window}, median", rows["sweep"].samples, "ms")
    yield Row(f"sweeps in {plan.held_seconds:g} s", rows["sweeps"].samples, "")
    yield Row(f"jobs in {plan.held_seconds:g} s", rows["jobs"].samples, "")


def _measured(server: Server, plan: Plan) -> dict[str, float]:
    with server.database() as url, processes.relay(url), psycopg.connect(url) as holder:
        holder.isolation_level = IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM outbox")
        began = time.perf_counter()
        claims = asyncio.run(_work(url, plan.held_seconds))
        end = claims[-1].at
    first = _medians([each for each in claims if each.at < began + plan.held_window])
    last = _medians([each for each in claims if each.at > end - plan.held_window])
    return {
        "first": first[0],
        "last": last[0],
        "ratio": last[0] / first[0],
        "sweep": last[1],
        "sweeps": sum(each.sweep for each in claims),
        "jobs": sum(each.rows for each in claims),
    }


def _medians(claims: list[Claimed]) -> tuple[float, float]:
    """Milliseconds of a full claim from the cursor, and of a sweep."""
    cursor = [1000 * each.took for each in claims if not each.sweep and each.rows == BATCH]
    sweeps = [1000 * each.took for each in claims if each.sweep]
    return median(cursor), median(sweeps or [0.0])


async def _work(url: str, seconds: float) -> list[Claimed]:
    source = WatchedSource(url)
    async with await connect(url, name="bench", hot=True) as conn:
        worker_id = await asyncio.to_thread(_register, url)
        for _ in range(AHEAD):
            await _enqueue(conn)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await _enqueue(conn)
            attempts = await source.claim(worker_id, BATCH)
            endings = [Ending(*attempt.key, JobState.COMPLETED, "completed", "null") for attempt in attempts]
            await finish(conn, worker_id, endings)
    await source.aclose()
    return source.claims


async def _enqueue(conn: Connection) -> None:
    jobs = tuple(NewJob(user_id="bench", preset=PRESET, content="outrider") for _ in range(BATCH))
    await enqueue_group(conn, [Submission(jobs)])


def _register(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as conn:
        return workers.register(conn, workers.Registration("bench", [PRESET], BATCH), 3600)
