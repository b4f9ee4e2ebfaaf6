"""The cost of a claim while a snapshot keeps every dead row: jobs come, are claimed and finish at full speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from statistics import median
from typing import Final, NamedTuple

import psycopg
from psycopg import IsolationLevel

from engine.model import Attempt, JobState, NewJob, Reason
from engine.moves import Ending, finish
from engine.moves.enqueue import Submission, enqueue_group
from engine.storage.connections import Connection, connect
from engine.storage.scan_cursor import Marks
from engine.tables import workers
from ops.bench import processes
from ops.bench.figures import Row, repeated
from ops.bench.plan import Plan
from ops.harness.postgres import Databases
from worker.source import PostgresSource

TITLE = "Claim of 500 while a snapshot is held, jobs coming and going at full speed"
PRESET: Final = "noop"
BATCH: Final = 500
AHEAD: Final = 4
"""Ready batches in addition to the one that is claimed."""
MOST: Final = 1.5


class Claimed(NamedTuple):
    """One scan: when it ended, and how many seconds it took."""

    at: float
    took: float
    rows: int
    sweep: bool


class Log(NamedTuple):
    """Every scan; and, as a measure of the machine, every enqueue of a batch: when it ended, and its seconds."""

    claims: list[Claimed]
    enqueues: list[tuple[float, float]]


class WatchedSource(PostgresSource):
    """Records the time of each scan."""

    def __init__(self, url: str) -> None:
        super().__init__(url, [PRESET])
        self.claims: list[Claimed] = []

    async def _scan(self, worker_id: int, limit: int, marks: Marks | None) -> list[Attempt]:
        began = time.perf_counter()
        found = await super()._scan(worker_id, limit, marks)
        now = time.perf_counter()
        self.claims.append(Claimed(now, now - began, len(found), marks is None))
        return found


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    rows = repeated(plan.repeat, lambda: _measured(server, plan), "ms")
    window = f"{plan.held_window:g} s"
    ends = f"last {window} / first {window}"
    yield Row(f"cursor claim, first {window}, median", rows["first"].samples, "ms")
    yield Row(f"cursor claim, last {window}, median", rows["last"].samples, "ms")
    yield Row(f"cursor claim, {ends}", rows["claim"].samples, at_most=MOST)
    yield Row(f"an enqueue of as many, {ends}", rows["enqueue"].samples)
    yield Row(f"sweep, last {window}, median", rows["sweep"].samples, "ms")
    yield Row(f"sweeps in {plan.held_seconds:g} s", rows["sweeps"].samples, "")
    yield Row(f"jobs in {plan.held_seconds:g} s", rows["jobs"].samples, "")


def _measured(server: Databases, plan: Plan) -> dict[str, float]:
    with server.migrated() as url, processes.relay(url), psycopg.connect(url) as holder:
        holder.isolation_level = IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM outbox")
        log = asyncio.run(_work(url, plan.held_seconds))
    head, tail = log.claims[0].at + plan.held_window, log.claims[-1].at - plan.held_window
    cursor = [(each.at, each.took) for each in log.claims if not each.sweep and each.rows == BATCH]
    sweeps = [each.took for each in log.claims if each.sweep and each.at > tail]
    first, last = _ends(cursor, head, tail)
    first_enqueue, last_enqueue = _ends(log.enqueues, head, tail)
    return {
        "first": 1000 * first,
        "last": 1000 * last,
        "claim": last / first,
        "enqueue": last_enqueue / first_enqueue,
        "sweep": 1000 * median(sweeps or [0.0]),
        "sweeps": sum(each.sweep for each in log.claims),
        "jobs": sum(each.rows for each in log.claims),
    }


def _ends(timed: list[tuple[float, float]], head: float, tail: float) -> tuple[float, float]:
    """The median time of calls that ended before `head`, and of calls that ended after `tail`.

    On a busy machine none may have ended then: the first and the last one stand for them.
    """
    first = [took for at, took in timed if at < head] or [timed[0][1]]
    last = [took for at, took in timed if at > tail] or [timed[-1][1]]
    return median(first), median(last)


async def _work(url: str, seconds: float) -> Log:
    source = WatchedSource(url)
    enqueues: list[tuple[float, float]] = []
    async with await connect(url, name="bench", pinned=True) as conn:
        worker_id = await asyncio.to_thread(_register, url)
        for _ in range(AHEAD):
            await _enqueue(conn)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            await _enqueue(conn)
            enqueued = time.perf_counter()
            enqueues.append((enqueued, enqueued - began))
            attempts = await source.claim(worker_id, BATCH)
            endings = [
                Ending(*attempt.key, JobState.COMPLETED, Reason.COMPLETED, "null") for attempt in attempts
            ]
            await finish(conn, worker_id, endings)
    await source.aclose()
    return Log(source.claims, enqueues)


async def _enqueue(conn: Connection) -> None:
    jobs = tuple(NewJob(user_id="bench", preset=PRESET, content="outrider") for _ in range(BATCH))
    await enqueue_group(conn, [Submission(jobs)])


def _register(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as conn:
        return workers.register(conn, workers.Registration("bench", [PRESET], BATCH), 3600)
