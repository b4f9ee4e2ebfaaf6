"""Web processes that share a port under a supervisor: one is killed, all are stopped, and no connection is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from http.client import HTTPResponse
from typing import Any
from uuid import UUID

import orjson

from engine.settings import load
from ops.cli.context import sign
from ops.harness.ports import HOST, free_port
from ops.waiting import until
from tests.support.database import fetchone
from tests.system.acceptance.conftest import Process, ProcessHarness
from tests.system.acceptance.supervised import get, gone, samples

# Guards a server that lives for seconds.
SECRET = "a secret of the test, which is long enough"
CLIENTS = 8
SECONDS = 60.0
"""For whatever starts processes: a busy machine takes its time."""


class Web:
    """A supervisor of web processes, and clients that use each connection once."""

    def __init__(self, supervisor: Process, port: int) -> None:
        self.supervisor = supervisor
        self._port = port
        token = sign(load({"OUTRIDER_JWT_SECRET": SECRET}), SECRET, sub="ann", seconds=600)
        body = orjson.dumps({"preset": "wait", "content": "c"})
        head = f"POST /pipeline/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = (head + more).encode() + body
        self.accepted: list[UUID] = []
        self.lost: list[str] = []

    def ask(self) -> socket.socket:
        """Connect and send a request. The kernel takes both, whether or not a process accepts the connection."""
        connection = socket.create_connection((HOST, self._port))
        connection.sendall(self._request)
        return connection

    def answer(self, connection: socket.socket) -> None:
        """Wait for the answer and note the job. Raises OSError, HTTPException."""
        with connection:
            connection.settimeout(SECONDS)
            response = HTTPResponse(connection)
            response.begin()
            answered = orjson.loads(response.read())
            assert response.status == 202, answered
            self.accepted.append(UUID(answered["job_id"]))

    async def submit_until(self, stop: asyncio.Event) -> None:
        """Submit jobs one after the other until `stop`, or until nobody listens any more."""
        while not stop.is_set():
            try:
                connection = await asyncio.to_thread(self.ask)
            except ConnectionError:
                return
            try:
                await asyncio.to_thread(self.answer, connection)
            except OSError as error:
                self.lost.append(repr(error))

    async def more(self, count: int) -> None:
        """Wait until so many further jobs are accepted."""
        enough = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= enough, SECONDS)


async def start(processes: ProcessHarness, count: int = 2, **settings: object) -> Web:
    port = free_port()
    given: dict[str, Any] = {"HTTP_PORT": port, "JWT_SECRET": SECRET, **settings}
    supervisor = await processes.start("web", processes=count, registered=0, **given)
    await supervisor.says("web.started", times=count, seconds=SECONDS)
    return Web(supervisor, port)


async def stored(processes: ProcessHarness, web: Web) -> bool:
    found = await fetchone(processes.conn, "SELECT count(*) FROM jobs WHERE id = ANY (%s)", web.accepted)
    return bool(found == (len(web.accepted),))


async def test_a_killed_process_is_replaced_while_requests_go_on(processes: ProcessHarness) -> None:
    web = await start(processes)
    victim, other = web.supervisor.children()
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(web.submit_until(done))
        await web.more(50)
        os.kill(victim, signal.SIGKILL)
        await web.supervisor.says("child.ended")
        await web.more(50)
        await web.supervisor.says("web.started", times=3, seconds=SECONDS)
        await web.more(50)
        done.set()
    assert web.supervisor.fields("child.ended")["role"] in ("web 1", "web 2")
    assert other in web.supervisor.children()
    # Only what the process had accepted can go with it.
    assert len(web.lost) <= CLIENTS
    assert await stored(processes, web)
    web.supervisor.send(signal.SIGTERM)
    assert await web.supervisor.ended() == 0


async def test_connections_that_wait_outlive_the_process_that_could_have_taken_them(
    processes: ProcessHarness,
) -> None:
    # A name that has addresses of two families, where the machine has both: then there are two queues.
    web = await start(processes, HTTP_HOST="localhost")
    pids = web.supervisor.children()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    waiting = [web.ask() for _ in range(CLIENTS)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for each in waiting:
        await asyncio.to_thread(web.answer, each)
    assert len(web.accepted) == CLIENTS
    assert await stored(processes, web)


async def test_a_stop_under_load_answers_what_it_has_accepted(processes: ProcessHarness) -> None:
    web = await start(processes, drain=10)
    pids = web.supervisor.children()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(web.submit_until(asyncio.Event()))
        await web.more(50)
        web.supervisor.send(signal.SIGTERM)
        code = await web.supervisor.ended(SECONDS)
    assert code == 0
    await gone(*pids)
    assert await stored(processes, web)
    # Each client may have been in the queue when it was closed, and then found nobody.
    assert len(web.lost) <= CLIENTS
    assert web.supervisor.logged("web.stopped") == 2
    assert web.supervisor.logged("child.ended") == 0


async def test_a_restart_of_each_process_in_turn_loses_no_request(processes: ProcessHarness) -> None:
    web = await start(processes)
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(web.submit_until(done))
        for started, pid in enumerate(web.supervisor.children(), start=3):
            await web.more(20)
            os.kill(pid, signal.SIGTERM)
            await web.supervisor.says("web.started", times=started, seconds=SECONDS)
        await web.more(20)
        done.set()
    assert web.lost == []
    assert await stored(processes, web)


async def test_each_process_has_a_check_and_its_own_metrics(processes: ProcessHarness) -> None:
    web = await start(processes)

    async def checks() -> tuple[int, dict[str, str]]:
        status, answer = await get(web.supervisor, "/readyz")
        return status, orjson.loads(answer)["checks"]

    async def ready() -> bool:
        return await checks() == (200, {"web 1": "ok", "web 2": "ok", "accepting": "ok"})

    await until(ready, SECONDS)
    _, page = await get(web.supervisor, "/metrics")
    assert samples(page, "outrider_build_info", "role", "process") == {
        ("supervisor", "0"): 1,
        ("web", "1"): 1,
        ("web", "2"): 1,
    }
    victim = web.supervisor.children()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        status, said = await checks()
        alive, _ = await get(web.supervisor, "/healthz")
    finally:
        os.kill(victim, signal.SIGCONT)
    assert (status, alive) == (503, 200)
    assert sorted(said.values()) == ["no answer within 2 s", "ok", "ok"]
    await until(ready, SECONDS)


async def test_the_check_of_a_process_says_which_of_its_own_checks_fails(processes: ProcessHarness) -> None:
    web = await start(processes)
    await processes.conn.execute("ALTER TABLE _yoyo_migration RENAME TO hidden")

    async def told() -> dict[str, str] | None:
        status, answer = await get(web.supervisor, "/readyz")
        checks: dict[str, str] = orjson.loads(answer)["checks"]
        return checks if status == 503 and checks["web 1"].startswith("schema: ") else None

    try:
        checks = await until(told, SECONDS)
    finally:
        await processes.conn.execute("ALTER TABLE hidden RENAME TO _yoyo_migration")
    assert checks["web 1"] == checks["web 2"]
    assert "rights" not in checks["web 1"]
    assert checks["accepting"] == "ok"


async def test_a_port_that_is_taken_ends_the_supervisor_at_once(processes: ProcessHarness) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        supervisor = await processes.start(
            "web", processes=2, registered=0, HTTP_PORT=port, JWT_SECRET=SECRET
        )
        assert await supervisor.ended(SECONDS) == 2
