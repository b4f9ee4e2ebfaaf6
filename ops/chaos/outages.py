"""Takes the database away from running jobs: `python -m ops.chaos.outages [SCENARIO …] [--jobs N] [--seconds S]`.

Every scenario starts a server, a relay that runs no jobs, and a worker. While the jobs run, the database stops,
freezes, refuses everybody or is locked. Nobody dies of that, so no job may be charged a crash, none may fail, and each
outage may cost each job one attempt at the most.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psycopg
from psycopg import AsyncConnection, sql

import migrations
from engine.model import NewJob
from engine.moves.enqueue import enqueue
from engine.queries import invariants
from ops.bench import processes
from ops.harness.postgres import Databases, folder_in_memory
from ops.local.server import Server, local_server
from ops.waiting import until

PIPELINES: Final = "ops.chaos.pipelines"
PRESET: Final = "linger"
APP: Final = "app"
SETTINGS: Final = {"fsync": "off", "full_page_writes": "off"}
RUNNING_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 1.0
"""Between the outages of a scenario, once all jobs run again."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A running server, `url` for its administrator, and the processes of the engine on it."""

    server: Server
    url: str
    postmaster: Callable[[], int]
    engine: Sequence[int]

    async def admin(self) -> AsyncConnection:
        return await AsyncConnection.connect(self.url, autocommit=True)


Fault = Callable[[Scene, float], Awaitable[None]]


async def crash(scene: Scene, seconds: float) -> None:
    """As `pg_ctl stop -m immediate`, and a start that recovers."""
    os.kill(scene.postmaster(), signal.SIGQUIT)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(scene.server.start)


async def refuse(scene: Scene, seconds: float) -> None:
    """Nobody may log in, and whoever was in is thrown out."""
    async with await scene.admin() as conn:
        await conn.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(APP)))
        await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [APP])
        await asyncio.sleep(seconds)
        await conn.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(APP)))


async def freeze(scene: Scene, seconds: float) -> None:
    """The server answers nobody, and goes on as if nothing had been."""
    await _stopped(_with_children(scene.postmaster()), seconds)


async def freeze_host(scene: Scene, seconds: float) -> None:
    """Everything stops, the engine's processes too."""
    await _stopped([*_with_children(scene.postmaster()), *scene.engine], seconds)


async def lock_rows(scene: Scene, seconds: float) -> None:
    await _locked(scene, "SELECT FROM outbox FOR UPDATE", seconds)


async def lock_table(scene: Scene, seconds: float) -> None:
    await _locked(scene, "LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE", seconds)


async def reload(scene: Scene, seconds: float) -> None:
    """A new value for a setting that servers report to their clients, again and again."""
    async with await scene.admin() as conn:
        async with asyncio.timeout(seconds + RUNNING_SECONDS):
            for turn in range(int(seconds)):
                zone = sql.Literal(("UTC", "CET")[turn % 2])
                await conn.execute(sql.SQL("ALTER SYSTEM SET timezone = {}").format(zone))
                await conn.execute("SELECT pg_reload_conf()")
                # The pace of the scenario: several reloads in each lease.
                await asyncio.sleep(1)


async def step_clock(scene: Scene, seconds: float) -> None:
    """As a clock that jumps ahead by a minute and back again: every lease seems to have run out."""
    async with await scene.admin() as conn:
        for step in ("1 minute", "-1 minute"):
            await conn.execute("UPDATE workers SET expires_at = expires_at - %s::interval", [step])
            await asyncio.sleep(seconds / 2)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`times` faults of `seconds`. `costs` is how many attempts each may cost a job."""

    fault: Fault
    seconds: float
    times: int = 1
    lease: float = 3.0
    lock_timeout: str = "0"
    costs: int = 1


SCENARIOS: Final = {
    "crashes": Scenario(crash, 8, times=3),
    "refusals": Scenario(refuse, 8, times=3),
    "long-outage": Scenario(crash, 45),
    "freeze": Scenario(freeze, 8, lease=6, times=2),
    "host-freeze": Scenario(freeze_host, 10, times=2),
    "locked-rows": Scenario(lock_rows, 5, lock_timeout="1s", costs=0),
    "locked-table": Scenario(lock_table, 5, lock_timeout="1s", costs=0),
    "locked-long": Scenario(lock_table, 14, lease=10, lock_timeout="2s", costs=0),
    "reloads": Scenario(reload, 8, costs=0),
    "clock-steps": Scenario(step_clock, 4, costs=0),
}


async def run(name: str, jobs: int, seconds: float) -> list[str]:
    """Play a scenario with `jobs` of `seconds` each. Returns what is wrong, a line each."""
    scenario = SCENARIOS[name]
    async with _open_scene(scenario, jobs) as scene:
        async with await scene.admin() as conn:
            ids = [
                (await enqueue(conn, NewJob(user_id="ann", preset=PRESET, content=f"{seconds:g}"))).id
                for _ in range(jobs)
            ]
        for _ in range(scenario.times):
            await until(lambda: _all(scene, "status = 'leased'", jobs), RUNNING_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
            await scenario.fault(scene, scenario.seconds)
        await until(lambda: _all(scene, "false", 0), (scenario.times + 2) * (seconds + RUNNING_SECONDS))
        async with await scene.admin() as conn:
            return await _verdict(conn, jobs, 1 + scenario.costs * scenario.times, len(ids))


async def _verdict(conn: AsyncConnection, jobs: int, starts: int, promised: int) -> list[str]:
    ends = "SELECT state::text, crashes, attempt, count(*) FROM job_results GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    rows = await (await conn.execute(ends)).fetchall()
    for state, crashes, attempt, count in rows:
        print(f"  {count} {state}, crashes {crashes}, at attempt {attempt} of {starts}")
    wrong = [str(row) for row in rows if row[0] != "COMPLETED" or row[1] or row[2] > starts]
    if (found := sum(row[3] for row in rows)) != promised:
        wrong.append(f"{found} of {jobs} jobs have a result")
    report = await invariants.report(conn, {})
    return wrong + [f"{each.invariant.name}: {each.offenders}" for each in report.findings]


async def _all(scene: Scene, condition: str, jobs: int) -> bool:
    """Whether the outbox has `jobs` rows, all of them as `condition` says."""
    statement = f"SELECT count(*), count(*) FILTER (WHERE {condition}) FROM outbox"  # noqa: S608 - our own words
    try:
        async with await scene.admin() as conn:
            row = await (await conn.execute(statement.encode())).fetchone()
    except psycopg.OperationalError:
        return False  # the server is still recovering
    return row == (jobs, jobs)


@contextmanager
def _server() -> Iterator[tuple[Server, Path]]:
    """A temporary server, and the file with its process id."""
    with TemporaryDirectory(prefix="outrider-", dir=folder_in_memory()) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with local_server(folder, SETTINGS) as server:
            [pid_file] = folder.rglob("postmaster.pid")
            yield server, pid_file


def _database(server: str, lock_timeout: str) -> tuple[str, str]:
    """A new database, migrated: its URL for the administrator, and for the engine's own role."""
    databases = Databases(server)
    # Closed at once: a connection of ours would not survive the first crash.
    with closing(databases), psycopg.connect(server, autocommit=True) as conn:
        app, name = sql.Identifier(APP), databases.create()
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(app))
        timeout = sql.Literal(lock_timeout)
        conn.execute(sql.SQL("ALTER ROLE {} SET lock_timeout = {}").format(app, timeout))
        conn.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(name), app))
    url = databases.url(name)
    ours = url.replace("user=outrider", f"user={APP}")
    migrations.up(ours)
    return url, ours


@asynccontextmanager
async def _open_scene(scenario: Scenario, slots: int) -> AsyncIterator[Scene]:
    with _server() as (server, pid_file):
        url, ours = _database(server.url, scenario.lock_timeout)
        async with AsyncExitStack() as running:
            settings = {"OUTRIDER_LEASE_SECONDS": f"{scenario.lease:g}"}
            relay = processes.relay(ours, **settings)
            worker = processes.worker(ours, slots, OUTRIDER_PIPELINES=PIPELINES, **settings)
            children = []
            for process in (relay, worker):
                children.append(await asyncio.to_thread(process.__enter__))
                running.push_async_callback(asyncio.to_thread, process.__exit__, None, None, None)
            yield Scene(
                server,
                url,
                lambda: int(pid_file.read_text().split()[0]),
                [child.pid for child in children],
            )


async def _locked(scene: Scene, statement: str, seconds: float) -> None:
    async with await scene.admin() as conn, conn.transaction():
        await conn.execute(statement.encode())
        await asyncio.sleep(seconds)


async def _stopped(pids: Sequence[int], seconds: float) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _with_children(pid: int) -> list[int]:
    """A process before its children, so that it starts none after they have been listed as stopped."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(parent) == pid:
            children.append(int(stat.parent.name))
    return [pid, *children]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.outages")
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="default: all of them")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each job runs")
    asked = parser.parse_args(arguments)
    failed = False
    for name in asked.scenarios or SCENARIOS:
        print(f"{name}: {asked.jobs} jobs of {asked.seconds:g} s")
        wrong = asyncio.run(run(name, asked.jobs, asked.seconds))
        for line in wrong:
            print(f"  WRONG: {line}")
        failed = failed or bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
