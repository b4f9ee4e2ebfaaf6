"""Real processes run jobs that end in every way, and their counters are added up and held against the database.

`python -m tests.system.acceptance.counter_sums [--jobs N] [--owners N] [--kill]` does it at full size on a database
of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from joserfc import jwt
from joserfc.jwk import OctKey
from prometheus_client.parser import text_string_to_metric_families
from psycopg import AsyncConnection

import migrations
from ops.harness.process import ROOT
from ops.local.server import local_postgres
from ops.waiting import until
from tests.support.database import Conn
from tests.support.json_lines import events
from tests.system.acceptance import outcome_pipelines as fates
from tests.system.acceptance.counters import COUNTED, SHOWN, Labels, Sum, Sums

SECRET = "the sums are made under a secret of their own"
BATCH = 100
CLIENTS = 8
SLOTS = 50
LEASE = 3
SECONDS = 300.0
LATER = 600
"""Seconds until a delayed job is due: it is cancelled before, or still waits at the end."""
REDRIVEN = 20


class Process:
    """web, relay or worker, with its log in a file."""

    def __init__(self, child: asyncio.subprocess.Process, role: str, log: Path) -> None:
        self.child = child
        self.role = role
        self.log = log
        self.port = self.admin_port = 0

    async def started(self) -> None:
        async def look() -> dict[str, Any]:
            assert self.child.returncode is None, self.log.read_text()
            return self.said(f"{self.role}.started")

        said = await until(look)
        self.port, self.admin_port = said.get("port", 0), said["admin_port"]

    def said(self, event: str) -> dict[str, Any]:
        """The first log line of this event; empty while there is none."""
        return next((line for line in events(self.log) if line["event"] == event), {})

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.child.returncode is None:
            self.child.send_signal(number)
        await self.child.wait()


class CounterHarness:
    """Processes over one database, and clients of theirs."""

    def __init__(self, url: str, conn: Conn, folder: Path, stack: AsyncExitStack) -> None:
        self.conn = conn
        self.processes: list[Process] = []
        self._url = url
        self._folder = folder
        self._stack = stack
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        self._tokens: dict[str, str] = {}

    async def start(self, role: str) -> Process:
        log = self._folder / f"{role}-{len(self.processes)}.log"
        settings = {
            "DATABASE_URL": self._url,
            "PIPELINES": fates.__name__,
            "HTTP_PORT": 0,
            "ADMIN_PORT": 0,
            "JWT_SECRET": SECRET,
            "LEASE_SECONDS": LEASE,
            "WORKER_CONCURRENCY": SLOTS,
            # What the relay's worker counts ends with it, and it outlives a relay that is killed.
            "RELAY_WORKERS": 0,
            "LOG_FORMAT": "json",
        }
        with log.open("wb") as stream:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", role),
                cwd=ROOT,
                stderr=stream,
                env=os.environ | {f"OUTRIDER_{name}": str(value) for name, value in settings.items()},
            )
        process = Process(child, role, log)
        self._stack.push_async_callback(process.end, signal.SIGKILL)
        self.processes.append(process)
        await process.started()
        return process

    async def call(self, owner: str, path: str, body: Any = None) -> Any:
        """POST as `owner`; the answer's JSON, or None for a conflict."""
        if owner not in self._tokens:
            claims = {"sub": owner, "exp": int(time.time()) + 3600}
            self._tokens[owner] = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
        [web] = [each for each in self.processes if each.role == "web"]
        headers = {"Authorization": f"Bearer {self._tokens[owner]}"}
        async with self._http.post(
            f"http://127.0.0.1:{web.port}{path}", json=body, headers=headers
        ) as answer:
            assert answer.status in (200, 202, 409), await answer.text()
            return await answer.json() if answer.status != 409 else None

    async def submit(self, jobs: Sequence[Mapping[str, Any]], owners: int) -> list[tuple[str, str]]:
        """All of `jobs`, in batches of many owners; gives (owner, job id) of each in order."""
        batches = [jobs[n : n + BATCH] for n in range(0, len(jobs), BATCH)]
        room = asyncio.Semaphore(CLIENTS)

        async def one(number: int, batch: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
            owner = f"owner-{number % owners}"
            async with room:
                accepted = await self.call(owner, "/pipeline/batch", {"jobs": batch})
            return [(owner, job_id) for job_id in accepted["job_ids"]]

        answers = await asyncio.gather(*(one(*each) for each in enumerate(batches)))
        return [each for answer in answers for each in answer]

    async def each(self, jobs: Iterable[tuple[str, str]], verb: str) -> None:
        room = asyncio.Semaphore(CLIENTS)

        async def one(owner: str, job_id: str) -> None:
            async with room:
                await self.call(owner, f"/pipeline/job/{job_id}/{verb}")

        await asyncio.gather(*(one(*job) for job in jobs))

    async def settled(self, left: int = 0) -> None:
        """Wait until nothing is owed but `left` jobs that wait."""

        async def look() -> bool:
            [(owed, waiting)] = await self.rows(
                "SELECT count(*), count(*) FILTER (WHERE status = 'waiting' AND run_at > now() + interval '60 s')"
                " FROM outbox"
            )
            return bool(owed == waiting == left)

        await until(look, SECONDS)

    async def holder(self) -> Process | None:
        """A worker that runs a job which does not end by itself."""
        holders = await self.rows(
            "SELECT q.worker_id FROM outbox q JOIN jobs j ON j.id = q.job_id"
            " WHERE q.status = 'leased' AND j.preset = 'held' AND q.attempt = 1"
        )
        return next(
            (each for each in self.processes if (each.said("worker.registered").get("worker"),) in holders),
            None,
        )

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await (await self.conn.execute(statement.encode())).fetchall()]

    async def scrape(self, process: Process) -> dict[tuple[str, Labels], float]:
        """Each series of a process, by name and sorted labels."""
        async with self._http.get(f"http://127.0.0.1:{process.admin_port}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
            return {
                (
                    sample.name,
                    tuple(f"{name}={value}" for name, value in sorted(sample.labels.items())),
                ): sample.value
                for family in families
                for sample in family.samples
            }

    async def sums(self, wanted: Mapping[str, tuple[Labels, str]], *, role: str | None = None) -> list[Sum]:
        living = [
            each for each in self.processes if each.child.returncode is None and role in (None, each.role)
        ]
        scrapes = [await self.scrape(process) for process in living]
        found = []
        for name, (labels, statement) in wanted.items():
            told: Sums = Counter()
            for (series, shown), value in [item for scrape in scrapes for item in scrape.items()]:
                if series == name:
                    values = dict(label.split("=", 1) for label in shown)
                    told[tuple(values[label] for label in labels)] += int(value)
            true = Counter({tuple(row[:-1]): row[-1] for row in await self.rows(statement)})
            found.append(Sum(name, told, true))
        return found

    async def gauges(self) -> list[Sum]:
        """The sampler's figures, as soon as it has looked at what stands now."""

        async def look() -> list[Sum]:
            shown = await self.sums(SHOWN, role="relay")
            return shown if all(each.equal for each in shown) else []

        return await until(look)

    async def aclose(self) -> None:
        await self._http.close()


@asynccontextmanager
async def open_counter_harness(url: str, folder: Path) -> AsyncIterator[CounterHarness]:
    """web, relay and two workers in Postgres mode, where the relay runs jobs too."""
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(await AsyncConnection.connect(url, autocommit=True))
        counters_harness = CounterHarness(url, conn, folder, stack)
        stack.push_async_callback(counters_harness.aclose)
        for role in ("web", "relay", "worker", "worker"):
            await counters_harness.start(role)
        yield counters_harness


async def run_all(counters_harness: CounterHarness, jobs: int, *, kill: bool) -> list[Sum]:
    """Jobs of every fate, cancelled and redriven; with `kill`, under a worker that dies. Gives all the sums."""
    told = {preset: max(2, int(jobs * share)) for preset, share in fates.SHARES.items()}
    told["steady"] = jobs - sum(told.values())
    asked = [{"preset": preset, "content": "x"} for preset, count in told.items() for _ in range(count)]
    delayed = [{"preset": "steady", "content": "x", "delay_seconds": LATER}] * max(4, jobs // 50)
    ids = await counters_harness.submit([*delayed, *asked], owners=7)
    keep = len(delayed) // 2
    await counters_harness.each(ids[keep : len(delayed)], "cancel")
    if kill:
        victim = await until(counters_harness.holder)
        await victim.end(signal.SIGKILL)
        await counters_harness.start(victim.role)
    held = [each for each, job in zip(ids[len(delayed) :], asked, strict=True) if job["preset"] == "held"]
    await counters_harness.each(held, "cancel")
    await counters_harness.settled(keep)
    redriven = await counters_harness.rows(
        f"(SELECT user_id, job_id::text FROM job_results WHERE state = 'FAILED' LIMIT {REDRIVEN}) UNION ALL"  # noqa: S608
        f" (SELECT user_id, job_id::text FROM job_results WHERE state = 'CANCELLED' LIMIT {REDRIVEN})"
    )
    await counters_harness.each([(owner, job_id) for owner, job_id in redriven], "retry")
    await counters_harness.settled(keep)
    return await counters_harness.sums(COUNTED) + await counters_harness.gauges()


async def series(counters_harness: CounterHarness, jobs: int, owners: int) -> tuple[set[Any], set[Any]]:
    """The series of all processes after a few jobs of one owner, and after `jobs` of `owners`."""

    async def seen() -> set[Any]:
        return {
            (each.role, name)
            for each in counters_harness.processes
            for name in await counters_harness.scrape(each)
        }

    one = [{"preset": preset, "content": "x"} for preset in ("steady", "shaky", "sleepy")]
    await counters_harness.submit(one * BATCH, owners=1)
    await counters_harness.settled()
    # By then the relay has seen which presets the workers run.
    await counters_harness.gauges()
    before = await seen()
    await counters_harness.submit([one[0]] * jobs, owners)
    await counters_harness.settled()
    await counters_harness.gauges()
    return before, await seen()


async def _main(url: str, folder: Path, asked: argparse.Namespace) -> bool:
    async with open_counter_harness(url, folder) as counters_harness:
        if asked.owners:
            before, after = await series(counters_harness, asked.jobs, asked.owners)
            added = sorted(f"{role} {name} {' '.join(labels)}" for role, (name, labels) in after - before)
            print(
                f"{asked.jobs} jobs of {asked.owners} owners: {len(before)} series,",
                *(added or ["none added"]),
            )
            return not added
        found = await run_all(counters_harness, asked.jobs, kill=asked.kill)
        for each in found:
            word = "equal" if each.equal else "EXCEEDS" if each.exceeds else "less"
            print(f"{each.name:34} {each.told.total():>7} of {each.true.total():>7}  {word}")
        return not any(each.exceeds if asked.kill else not each.equal for each in found)


def main() -> int:
    """Print the sums; exit code 1 where they are not what they must be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.acceptance.counter_sums", description=__doc__
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument(
        "--owners", type=int, help="look for new series under jobs of so many owners, instead"
    )
    parser.add_argument(
        "--kill", action="store_true", help="kill a worker: then sums may be less, never more"
    )
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="outrider-sums-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # run by root, the server is another user's process
        with local_postgres(folder, {"fsync": "off"}) as url:
            migrations.up(url)
            return 0 if asyncio.run(_main(url, folder, asked)) else 1


if __name__ == "__main__":
    sys.exit(main())
