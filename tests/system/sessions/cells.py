"""The cells of the table: each is "works", or what was said instead."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import AsyncConnection

from engine import NewJob, enqueue
from ops.harness import tokens
from ops.harness.ports import HOST, free_port
from ops.harness.process import ROOT, outrider, running
from tests.system.sessions.rows import Place

WORKS: Final = "works"
COLUMNS: Final = ("migrate", "doctor", "web", "relay", "worker", "enqueue", "effects")
ROLES: Final = ("web", "relay", "worker")
SECRET: Final = "a secret of at least thirty-two bytes"
TEXT: Final = "Grüße, 世界 \\ \"null\" '🎬'"
COMMAND_SECONDS: Final = 60.0

Cells = dict[str, str]


class Client:
    """Speaks to the web process as one owner."""

    def __init__(self, port: int) -> None:
        self._port = port
        token = tokens.sign({"sub": "ann", "exp": int(time.time()) + 600}, SECRET)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection(HOST, self._port, timeout=30)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, self._headers | headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def submit(self, **changes: Any) -> str:
        status, body = self.ask("POST", "/pipeline/run", {"preset": "ledger", "content": TEXT, **changes})
        assert status == 202, body
        return str(body["job_id"])

    def completed(self, job_id: str | UUID) -> None:
        """Wait until the job has ended, and demand that it is completed and holds what was asked."""
        status, job = self.ask("GET", f"/pipeline/job/{job_id}", Prefer="wait=20")
        assert (status, job.get("status"), job.get("result")) == (200, "completed", TEXT), job


def cells(place: Place, folder: Path) -> Cells:
    """Fill one row. What is refused at the start cannot be looked at any further."""
    environ = _environ(place)
    found = {"migrate": _said(_called(environ, "migrate", "up"))}
    if found["migrate"] != WORKS:
        # The schema may be there all the same: somebody has migrated by another way.
        _called(environ | {"OUTRIDER_DATABASE_URL": place.direct_url}, "migrate", "up")
    with ExitStack() as stack:
        port = free_port()
        for role in ROLES:
            extra = {"OUTRIDER_HTTP_PORT": str(port)} if role == "web" else {}
            found[role] = stack.enter_context(_started(role, environ | extra, folder))
        if found["web"] == WORKS:
            _look(found, Client(port), place)
        else:
            found["effects"] = found["worker"]
            found["enqueue"] = _works(lambda: asyncio.run(_enqueued(place)))
        found["doctor"] = _said(_called(environ, "doctor", "--invariants"))
    return {column: found[column] for column in COLUMNS}


def _look(found: Cells, client: Client, place: Place) -> None:
    started = {role: found[role] for role in ROLES}
    found["web"] = _works(lambda: _web(client))
    found["relay"] = _works(lambda: client.completed(client.submit(delay_seconds=0.3)))
    mine = client.submit()
    found["worker"] = _works(lambda: client.completed(mine))
    found["effects"] = _works(lambda: _effects(place, mine))
    found["enqueue"] = _works(lambda: _ran(client, asyncio.run(_enqueued(place))))
    # A process that did not start is why the rest does not work.
    found.update({role: said for role, said in started.items() if said != WORKS})


def _web(client: Client) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    body = {"preset": "ledger", "content": TEXT, "metadata": {"n": None, "t": TEXT}, "delay_seconds": 600}
    (status, first), (again, replayed) = (client.ask("POST", "/pipeline/run", body, **key) for _ in range(2))
    assert (status, again) == (202, 202), first
    assert first == replayed
    path = f"/pipeline/job/{first['job_id']}"
    _, job = client.ask("GET", path)
    assert (job["status"], job["content"], job["metadata"]) == ("pending", TEXT, body["metadata"]), job
    _, listed = client.ask("GET", "/pipeline/jobs?status=pending")
    assert first["job_id"] in [each["job_id"] for each in listed["jobs"]]
    status, cancelled = client.ask("POST", f"{path}/cancel")
    assert (status, cancelled["status"]) == (200, "cancelled"), cancelled
    _, history = client.ask("GET", f"{path}/history")
    assert [each["to_status"] for each in history["history"]] == ["pending", "cancelled"]


async def _connected(place: Place) -> AsyncConnection[Any]:
    """The application's own connection: as its driver and its environment make it."""
    return await AsyncConnection.connect(place.url, autocommit=True)


async def _enqueued(place: Place) -> list[UUID]:
    async with await _connected(place) as conn:
        return [
            (await enqueue(conn, NewJob(user_id="ann", preset="ledger", content=TEXT))).id for _ in range(2)
        ]


def _ran(client: Client, ids: list[UUID]) -> None:
    for job_id in ids:
        client.completed(job_id)


def _effects(place: Place, job_id: str) -> None:
    """The row is in the table that the role's own session calls `ledger`, once."""

    async def look() -> list[Any]:
        async with await _connected(place) as conn:
            statement = "SELECT convert_to(content, 'UTF8') FROM ledger WHERE job_id = %s"
            return await (await conn.execute(statement, [job_id], binary=True)).fetchall()

    assert asyncio.run(look()) == [(TEXT.encode(),)]


@contextmanager
def _started(role: str, environ: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Yield what came of a start; the process ends with the block."""
    log = folder / f"{role}.log"
    port = free_port()
    with ExitStack() as stack, log.open("wb") as stream:
        try:
            command = outrider(role)
            with_port = {**environ, "OUTRIDER_ADMIN_PORT": str(port)}
            stack.enter_context(running(command, with_port, admin_port=port, errors=stream))
        except ChildProcessError:
            yield log.read_text().strip()
        else:
            yield WORKS


def _called(environ: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        outrider(*words),
        env=dict(environ),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )


def _said(ran: subprocess.CompletedProcess[str]) -> str:
    if ran.returncode == 0:
        return WORKS
    faults = [line for line in ran.stdout.splitlines() if not line.startswith("ok  ")]
    return "\n".join([*faults, ran.stderr]).strip()


def _works(look: Callable[[], object]) -> str:
    try:
        look()
    except Exception as error:  # noqa: BLE001 - the table shows it
        return f"{type(error).__name__}: {error}"
    return WORKS


def _environ(place: Place) -> dict[str, str]:
    """As little of the developer's environment as a process needs."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OUTRIDER_", "PG"))}
    return own | {
        "OUTRIDER_DATABASE_URL": place.url,
        "OUTRIDER_JWT_SECRET": SECRET,
        "OUTRIDER_PIPELINES": "tests.system.sessions.pipelines",
        "OUTRIDER_LEASE_SECONDS": "3",
        "OUTRIDER_DRAIN_SECONDS": "0",
        **place.environ,
    }
