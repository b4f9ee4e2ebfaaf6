"""Relays and workers killed in a storm of faults.

`python -m tests.system.chaos.storm [--jobs N] [--broker KIND] [--seed N]` runs it at full size.

Truth is kept outside the database: ids that were accepted, executions, and the result messages that a stranger reads.
On the emulator there are kills only: faults and poison need the fake.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, LiteralString
from uuid import UUID

import grpc

from engine.model import NewJob
from engine.moves.enqueue import Submission, enqueue_group
from engine.queries import invariants
from engine.storage.connections import Connection, connect
from ops.bench.server import bench_server
from ops.harness.pubsub_fake import DropAcks, Duplicate, Fail, LoseReply, Remote, Reorder
from tests.system.chaos.fleet import Fleet, Kind, Process, open_fleet
from tests.system.chaos.subscriber import Subscriber

RELAYS: Final = 3
WORKERS: Final = 2
SLOTS: Final = 50
LEASE: Final = 3.0
STOPPED_SECONDS: Final = 1.5 * LEASE
POISONED: Final = 10
POISON: Final = "poison"
GROUP: Final = 50
AHEAD: Final = 1500
"""How many unfinished jobs there are at the most: submissions last as long as the storm."""
CALM: Final = 0.8
"""The share of the jobs that are done when the last blow falls."""
END_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.1
READ_SECONDS: Final = 30.0
SETTLE_SECONDS: Final = 1.0
JOBS, RESULTS = "pipeline-jobs", "pipeline-results"

COUNTS: LiteralString = """
SELECT (SELECT count(*) FROM job_results), (SELECT count(*) FROM outbox),
       (SELECT count(*) FROM outbox_events WHERE quarantined_at IS NULL)
"""
STATES: LiteralString = "SELECT state::text, count(*) FROM job_results GROUP BY 1"
ENDS: LiteralString = "SELECT job_id, version FROM job_results"
EFFECTS: LiteralString = "SELECT job_id, count(*) FROM effects GROUP BY 1"
STRAYED: LiteralString = """
SELECT count(*) FROM effects e JOIN job_results r ON r.job_id = e.job_id WHERE e.attempt <> r.attempt
"""
SET_ASIDE: LiteralString = """
SELECT attributes ->> 'job_id' FROM outbox_events WHERE quarantined_at IS NOT NULL AND reason IS NOT NULL
"""


class Storm:
    def __init__(self, conn: Connection, fleet: Fleet, broker: Any, jobs: int, rng: random.Random) -> None:
        self._conn = conn
        self._fleet = fleet
        self._broker = broker
        self._jobs = jobs
        self._rng = rng
        self.accepted: list[UUID] = []
        self.rolled_back: list[UUID] = []
        self.poisoned: set[UUID] = set()
        self.results = Subscriber(broker.host, f"{RESULTS}-sub")
        self.letters = Subscriber(broker.host, "pipeline-dlq-sub")
        self._relays: list[Process] = []
        self._workers: list[Process] = []
        self.faults: Counter[str] = Counter()

    @property
    def faulty(self) -> bool:
        return isinstance(self._broker, Remote)

    async def counts(self) -> tuple[int, int, int]:
        """Jobs that are finished, jobs that are not, and events that have still to leave."""
        [(finished, unfinished, events)] = await (await self._conn.execute(COUNTS)).fetchall()
        return finished, unfinished, events

    async def submit(self, conn: Connection) -> None:
        """All jobs, and now and then some in a transaction that is rolled back."""
        bad = set(self._rng.sample(range(self._jobs), POISONED)) if self.faulty else set()
        for first in range(0, self._jobs, GROUP):
            numbers = range(first, min(first + GROUP, self._jobs))
            contents = [f"{POISON} {n}" if n in bad else f"job {n}" for n in numbers]
            if self._rng.random() < 0.1:
                async with conn.transaction(force_rollback=True):
                    self.rolled_back += await _enqueue(conn, contents)
            ids = await _enqueue(conn, contents)
            self.accepted += ids
            self.poisoned |= {job_id for n, job_id in zip(numbers, ids, strict=True) if n in bad}
            await _until(self._room, END_SECONDS)

    async def _room(self) -> bool:
        _, unfinished, _ = await self.counts()
        return unfinished < AHEAD

    async def start(self) -> None:
        if self.faulty:
            poison = Fail(
                method="Publish", on=RESULTS, containing=POISON, code=grpc.StatusCode.INVALID_ARGUMENT
            )
            await self._broker.inject(poison)
        starting = [self._fleet.start("relay") for _ in range(RELAYS)]
        self._relays = list(await asyncio.gather(*starting))
        self._workers = list(await asyncio.gather(*(self._fleet.start("worker") for _ in range(WORKERS))))

    async def rage(self, relay_kills: int, worker_kills: int) -> None:
        """Blow after blow, at even shares of the work, while other things fail at random."""
        faults = [await self._broker.inject(fault) for fault in _weather()] if self.faulty else []
        blows: list[Callable[[], Awaitable[None]]] = [
            *[self._kill_relay] * relay_kills,
            *[self._kill_worker] * worker_kills,
            *[self._cut_and_expire] * (worker_kills if self.faulty else 0),
            self._stop_worker,
        ]
        self._rng.shuffle(blows)
        for turn, blow in enumerate(blows, 1):
            share = CALM * self._jobs * turn / len(blows)
            await _until(partial(self._done, share), END_SECONDS)
            await blow()
        for fault in faults:
            await self._broker.lift(fault)

    async def _done(self, share: float) -> bool:
        finished, _, _ = await self.counts()
        return finished >= share

    async def _kill_relay(self) -> None:
        await self._kill("relay", self._relays)

    async def _kill_worker(self) -> None:
        await self._kill("worker", self._workers)

    async def _kill(self, role: str, those: list[Process]) -> None:
        await those.pop(self._rng.randrange(len(those))).kill()
        self.faults[f"{role}s killed"] += 1
        those.append(await self._fleet.start(role))

    async def _stop_worker(self) -> None:
        """Past its lease: others take its jobs, and when it goes on it must find that out."""
        worker = self._rng.choice(self._workers)
        worker.send(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_SECONDS)
        worker.send(signal.SIGCONT)
        self.faults["workers stopped"] += 1

    async def _cut_and_expire(self) -> None:
        """Streams end, and every message that is out comes again."""
        await self._broker.cut_streams(f"{JOBS}-sub")
        await self._broker.advance(301)
        self.faults["expiries"] += 1

    async def drained(self) -> bool:
        _, unfinished, events = await self.counts()
        return unfinished == events == 0


def _weather() -> list[Any]:
    subscription = f"{JOBS}-sub"
    return [
        Fail(method="Publish", probability=0.05),
        LoseReply(method="Publish", probability=0.05),
        Fail(method="Acknowledge", on=subscription, probability=0.05),
        LoseReply(method="Acknowledge", on=subscription, probability=0.05),
        Fail(method="StreamingPull", on=subscription, probability=0.3),
        Duplicate(on=subscription, probability=0.05),
        Reorder(on=subscription, probability=0.3),
        DropAcks(on=subscription, probability=0.002),
    ]


async def _enqueue(conn: Connection, contents: Sequence[str]) -> list[UUID]:
    jobs = [Submission((NewJob(user_id="ann", preset="entry", content=each),)) for each in contents]
    accepted = await enqueue_group(conn, jobs)
    return [job_id for each in accepted if not isinstance(each, Exception) for job_id in each.job_ids]


async def _rows(conn: Connection, statement: LiteralString) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement)).fetchall()


async def verdict(conn: Connection, storm: Storm, executions: Sequence[str]) -> list[str]:
    """What is wrong, a line each; prints what was found."""
    states = dict(await _rows(conn, STATES))
    ends = dict(await _rows(conn, ENDS))
    effects = dict(await _rows(conn, EFFECTS))
    aside = {UUID(job_id) for (job_id,) in await _rows(conn, SET_ASIDE)}
    runs = Counter(executions)
    wanted = {f"{job_id}:{version}:ResultMessage" for job_id, version in ends.items() if job_id not in aside}
    report = await invariants.report(conn, {})
    print(f"{states}; {len(runs)} executions; {len(aside)} events quarantined")
    print(f"{len(storm.results.seen)} result messages, {storm.results.seen.total()} with duplicates")
    print(f"invariants checked on {report.jobs} jobs: {len(report.findings)} broken")
    accepted = set(storm.accepted)
    checks = {
        "not every accepted job is COMPLETED": states == {"COMPLETED": len(accepted)},
        "the database and the ledger differ": set(ends) == accepted and report.jobs == len(accepted),
        "effects are missing": effects.keys() == accepted,
        "effects happened twice": all(count == 1 for count in effects.values()),
        "effects are of another attempt than the result": await _rows(conn, STRAYED) == [(0,)],
        "an attempt ran twice": all(count == 1 for count in runs.values()),
        "other events than the poison are quarantined": aside == storm.poisoned,
        "result messages are missing": wanted <= storm.results.seen.keys(),
        "there are result messages too many": storm.results.seen.keys() <= wanted,
        "a result message is of another job": all(
            name.startswith(body["job_id"]) and body["status"] == "completed"
            for name, body in storm.results.bodies.items()
        ),
        "there are dead letters": not storm.letters.seen,
    }
    wrong = [fault for fault, right in checks.items() if not right]
    return wrong + [f"{each.invariant.name}: {each.jobs} {each.offenders[:3]}" for each in report.findings]


async def run(
    url: str, jobs: int, kind: Kind, seed: int, *, relay_kills: int = 6, worker_kills: int = 3
) -> list[str]:
    """Play the storm on the database that `url` names; returns what is wrong."""
    settings = {
        "PIPELINES": "tests.system.chaos.pipelines",
        "WORKER_CONCURRENCY": SLOTS,
        "LEASE_SECONDS": LEASE,
    }
    async with (
        await connect(url, name="chaos") as conn,
        await connect(url, name="chaos submit") as submitting,
        open_fleet(url, kind, seed, **settings) as (fleet, broker),
    ):
        await conn.execute("CREATE TABLE effects (job_id uuid NOT NULL, attempt integer NOT NULL)")
        storm = Storm(conn, fleet, broker, jobs, random.Random(seed))  # noqa: S311 - the same storm for a seed
        await storm.start()
        began = time.monotonic()
        async with _reading(storm), asyncio.timeout(END_SECONDS):
            async with asyncio.TaskGroup() as group:
                group.create_task(storm.submit(submitting))
                group.create_task(storm.rage(relay_kills, worker_kills))
            late = await _drain(storm, began)
            await _quiet(storm)
        _tell(fleet, storm)
        return late + await verdict(conn, storm, fleet.executions())


@asynccontextmanager
async def _reading(storm: Storm) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(each.read()) for each in (storm.results, storm.letters)]
        yield
        for reader in readers:
            reader.cancel()


async def _drain(storm: Storm, began: float) -> list[str]:
    """Wait until nothing is left, and say so if that took longer than it may once the faults have ended."""
    healed = time.monotonic()
    finished, unfinished, events = await storm.counts()
    throughput = finished / (healed - began)
    may_take = 2 * LEASE + (unfinished + events) / throughput
    await _until(storm.drained, END_SECONDS)
    took = time.monotonic() - healed
    print(
        f"{len(storm.accepted)} jobs in {time.monotonic() - began:.1f} s, {throughput:.0f} jobs/s in the storm;"
        f" {unfinished} jobs and {events} events left at its end, gone after {took:.1f} s of {may_take:.1f} s"
    )
    return [f"it took {took:.1f} s to drain"] if took > may_take else []


async def _quiet(storm: Storm) -> None:
    """Wait until the stranger has read all there is, and a moment longer for what should not be there."""
    expected = len(storm.accepted) - len(storm.poisoned)
    with suppress(TimeoutError):  # then the verdict says what is missing
        await _until(lambda: _true(len(storm.results.seen) >= expected), READ_SECONDS)
    await asyncio.sleep(SETTLE_SECONDS)


async def _true(value: bool) -> bool:
    return value


async def _until(look: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Ten times a second, for counting finished jobs costs what running some of them does."""
    async with asyncio.timeout(seconds):
        while not await look():  # noqa: ASYNC110 - PostgreSQL has no event for it
            await asyncio.sleep(POLL_SECONDS)


def _tell(fleet: Fleet, storm: Storm) -> None:
    loud: Counter[str] = sum((process.loud() for process in fleet.processes), Counter())
    print(", ".join(f"{count} {what}" for what, count in storm.faults.items()))
    print("warnings: " + ", ".join(f"{count} {event}" for event, count in loud.most_common()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos.storm")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--broker", choices=["fake", "emulator"], default="fake")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = asyncio.run(run(url, asked.jobs, asked.broker, asked.seed))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
