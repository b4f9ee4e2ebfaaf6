"""What clients can take of a server before they are known: connections, heads, unwanted bodies, descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from engine.process import descriptors
from engine.process.http import acceptor, connection, door, refusals
from engine.process.http.admission import Limits
from engine.process.http.listener import listening
from engine.telemetry.metrics import CONNECTIONS_CLOSED, HTTP_CONNECTIONS
from ops.waiting import until

HOST = "127.0.0.1"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = 20.0

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class App:
    """A server with a path that answers, one that waits for `gate`, and one that reads its body."""

    def __init__(self, port: int, gate: asyncio.Event) -> None:
        self.port = port
        self.gate = gate
        self.waiting = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, said: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        self._writers.append(writer)
        writer.write(said)
        return reader, writer

    def leave(self) -> None:
        for each in self._writers:
            each.close()

    async def ask(self, client: Client, said: bytes = GET) -> bytes:
        client[1].write(said)
        return await answer(client)


async def answer(client: Client) -> bytes:
    head = await client[0].readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")
    )
    return head + await client[0].readexactly(length)


async def closed(client: Client) -> bytes:
    """What still comes until the server closes."""
    try:
        return await client[0].read()
    except ConnectionResetError:
        return b""


@asynccontextmanager
async def serving(
    connections: int = 100, per_address: int = 100, head_seconds: float = 10.0
) -> AsyncIterator[App]:
    gate = asyncio.Event()
    app = App(0, gate)

    async def wait(_request: web.Request) -> web.Response:
        app.waiting += 1
        await gate.wait()
        return web.Response(text="waited")

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    served = web.Application(client_max_size=1 << 30)
    served.router.add_get("/wait", wait)
    served.router.add_post("/read", read)
    served.router.add_route("*", "/", hello)
    limits = Limits(connections, per_address, head_seconds)
    async with asyncio.timeout(WAIT):
        async with listening(served, HOST, 0, server="api", limits=limits, drain_seconds=1) as app.port:
            try:
                yield app
            finally:
                gate.set()
                app.leave()


def count(reason: str) -> float:
    return float(CONNECTIONS_CLOSED.labels("api", reason)._value.get())


# The head


async def test_a_connection_that_says_nothing_is_closed_in_silence() -> None:
    before = count("late")
    async with serving(head_seconds=0.1) as app:
        client = await app.connect()
        assert await closed(client) == b""
    assert count("late") == before + 1


@pytest.mark.parametrize("said", [b"G", b"GET / HTTP/1.1\r\n", GET[:-2], b"\r\n"])
async def test_half_a_head_gets_a_408(said: bytes) -> None:
    async with serving(head_seconds=0.1) as app:
        assert (await closed(await app.connect(said))).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def test_a_head_that_drips_is_bounded_as_a_whole() -> None:
    async with serving(head_seconds=0.3) as app:
        reader, writer = client = await app.connect(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        reply = asyncio.create_task(closed(client))
        while not (await asyncio.wait([reply], timeout=0.02))[0]:
            writer.write(b"a")
        assert (await reply).startswith(b"HTTP/1.1 408")
        assert reader.at_eof()


@pytest.mark.parametrize("begun", [b"G", GET + b"G", GET + GET[:-2]])
async def test_on_a_kept_connection_the_time_runs_from_the_first_byte_of_a_head(begun: bytes) -> None:
    async with serving(head_seconds=0.2) as app:
        client = await app.connect()
        assert b"hello" in await app.ask(client)
        client[1].write(begun)
        if begun.startswith(GET):
            assert b"hello" in await answer(client)
        assert (await closed(client)).startswith(b"HTTP/1.1 408")


async def test_a_kept_connection_may_be_idle_for_longer_than_a_head_may_take() -> None:
    async with serving(head_seconds=0.1) as app:
        kept, silent = await app.connect(), await app.connect()
        await app.ask(kept)
        assert await closed(silent) == b""
        assert await closed(await app.connect()) == b""
        assert b"hello" in await app.ask(kept)


async def test_a_head_sent_ahead_of_its_turn_waits_for_the_answers_before_it() -> None:
    async with serving(head_seconds=0.1) as app:
        client = await app.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET[:-2])
        assert await closed(await app.connect()) == b""
        assert await closed(await app.connect()) == b""
        app.gate.set()
        assert b"waited" in await answer(client)
        client[1].write(b"\r\n")
        assert b"hello" in await answer(client)


async def test_a_head_without_end_gets_a_431(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_HEAD_BYTES", 4000)
    async with serving() as app:
        client = await app.connect(b"GET / HTTP/1.1\r\n")
        for _ in range(100):
            client[1].write(b"A: " + b"x" * 95 + b"\r\n")
        assert (await closed(client)).startswith(b"HTTP/1.1 431")


async def test_a_head_without_end_behind_a_request_in_flight_ends_both_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refusals, "MAX_HEAD_BYTES", 4000)
    async with serving() as app:
        client = await app.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: app.waiting == 1)
        client[1].write(b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 100)
        client[1].write(b"B: " + b"x" * 5000)
        assert await closed(client) == b""
        app.gate.set()
        assert b"hello" in await app.ask(await app.connect())
    assert not caplog.records


# The caps


async def test_silent_connections_of_an_address_make_room_for_one_that_asks() -> None:
    before = count("replaced")
    async with serving(per_address=3) as app:
        silent = [await app.connect() for _ in range(10)]
        assert b"hello" in await app.ask(await app.connect())
        assert [await closed(each) for each in silent[:8]] == [b""] * 8
        assert HTTP_CONNECTIONS.labels("api")._value.get() == 3
    assert count("replaced") == before + 8


async def test_a_half_head_makes_room_as_silence_does() -> None:
    async with serving(per_address=2) as app:
        halves = [await app.connect(GET[:-2]) for _ in range(2)]
        await until(lambda: HTTP_CONNECTIONS.labels("api")._value.get() == 2)
        assert b"hello" in await app.ask(await app.connect())
        done, _ = await asyncio.wait(
            [asyncio.create_task(closed(each)) for each in halves], return_when="FIRST_COMPLETED"
        )
        assert len(done) == 1


async def test_idle_connections_make_room_once_none_is_silent() -> None:
    async with serving(per_address=2) as app:
        kept = [await app.connect() for _ in range(2)]
        for each in kept:
            await app.ask(each)
        newcomer = await app.connect()
        assert b"hello" in await app.ask(newcomer)
        assert await closed(kept[0]) == b""
        assert b"hello" in await app.ask(kept[1])


async def test_requests_in_flight_are_kept_and_the_newcomer_gets_a_503() -> None:
    before = count("refused")
    async with serving(per_address=2) as app:
        busy = [await app.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        await until(lambda: app.waiting == 2)
        for said in (
            GET,
            b"",
            b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
        ):
            refused = await closed(await app.connect(said))
            assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 1\r\n" in refused
            assert b"\r\nConnection: close\r\n" in refused
        app.gate.set()
        for each in busy:
            assert b"waited" in await answer(each)
    assert count("refused") == before + 3


async def test_a_client_that_leaves_makes_room() -> None:
    async with serving(connections=1) as app:
        for said in (b"", b"GET", GET):
            _, writer = await app.connect(said)
            writer.close()
            await until(lambda: HTTP_CONNECTIONS.labels("api")._value.get() == 0)


# Bodies that nobody wants


def post(path: str, length: int, *more: str) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: x", *more, f"Content-Length: {length}", "", ""]
    ).encode()


async def test_a_small_unwanted_body_is_read_and_the_connection_kept() -> None:
    async with serving() as app:
        client = await app.connect()
        for _ in range(3):
            assert b"hello" in await app.ask(client, post("/", 100_000))
            client[1].write(b"x" * 100_000)


async def test_a_large_unwanted_body_closes_the_connection_and_the_answer_is_read() -> None:
    async with serving() as app:
        client = await app.connect(post("/", 3 << 20) + b"x" * (3 << 20))
        said = await closed(client)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"\r\nConnection: close\r\n" in said


@pytest.mark.parametrize("more", ["Expect: 100-continue", "Transfer-Encoding: chunked"])
async def test_a_body_of_unknown_length_is_not_waited_for(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DRAIN_SECONDS", WAIT)
    async with serving() as app:
        length = () if "chunked" in more else ("Content-Length: 5",)
        head = "\r\n".join(["POST / HTTP/1.1", "Host: x", more, *length, "", ""]).encode()
        assert b"HTTP/1.1 200" in await closed(await app.connect(head))


async def test_an_unwanted_body_that_does_not_come_is_waited_for_a_short_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "DRAIN_SECONDS", 0.1)
    async with serving() as app:
        assert (await closed(await app.connect(post("/", 10)))).startswith(b"HTTP/1.1 200")


async def test_an_endless_unwanted_body_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", WAIT)
    async with serving() as app:
        _, writer = await app.connect(post("/", 1 << 40))
        with suppress(ConnectionError):
            for _ in range(1024):
                writer.write(b"x" * 65_536)
                await writer.drain()
            pytest.fail("64 MiB were read")


async def test_a_body_is_given_as_it_came_and_never_inflated() -> None:
    async with serving() as app:
        client = await app.connect()
        said = await app.ask(client, post("/read", 5, "Content-Encoding: gzip") + b"12345")
        assert said.endswith(b"\r\n\r\n5")


# Descriptors


@contextmanager
def few_descriptors(left: int) -> Any:
    """Leave this process with so many more descriptors at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    fillers = [os.dup(0)]
    while fillers[-1] < used:
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in fillers:
            os.close(each)


async def test_without_descriptors_the_server_logs_a_line_and_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE_SECONDS", 0.05)
    async with serving() as app:
        with ExitStack() as clients, capture_logs() as lines:
            made = [clients.enter_context(socket.socket()) for _ in range(40)]
            with few_descriptors(8):
                for each in made:
                    each.setblocking(False)
                    each.connect_ex((HOST, app.port))
                await until(lambda: any(line["event"] == "connections.not_accepted" for line in lines))
                asked = clients.enter_context(socket.socket(fileno=made.pop().detach()))
                await asyncio.get_running_loop().sock_sendall(asked, GET)
                assert b"hello" in await asyncio.get_running_loop().sock_recv(asked, 1000)
        failed = [line for line in lines if line["event"] == "connections.not_accepted"]
        assert [line["error"] for line in failed] == ["Too many open files"]
        assert b"hello" in await app.ask(await app.connect())


def test_a_cap_that_does_not_fit_the_descriptors_is_lowered_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 1024))
    with capture_logs() as lines:
        assert descriptors.fitting(Limits(10_000, 1000)) == Limits(824, 824)
        assert descriptors.fitting(Limits(824, 100)) == Limits(824, 100)
    [line] = lines
    assert (line["event"], line["wanted"], line["possible"]) == ("connections.limited", 10_000, 824)
    assert "10200" in line["fix"]


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Clients that read nothing


async def test_a_client_that_never_reads_is_left_to_the_kernel_s_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("no TCP_USER_TIMEOUT here")
    monkeypatch.setattr(door, "UNSENT_MILLISECONDS", 1000)
    async with serving() as app:
        reader, writer = await app.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        assert reader is not None
        for _ in range(400):
            writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await until(lambda: HTTP_CONNECTIONS.labels("api")._value.get() == 0, WAIT)


async def test_both_families_of_a_name_are_bound() -> None:
    bound = await acceptor.bind("localhost", 0)
    assert {each.family for each in bound} <= {socket.AF_INET, socket.AF_INET6}
    assert bound
    for each in bound:
        each.close()


# Stopping


async def test_a_stop_waits_for_what_is_in_flight_as_long_as_it_may_and_no_longer() -> None:
    """One request is never answered, one body never comes, one answer is never read."""
    drain_seconds, waiting = 2.0, list[str]()

    async def wait(_request: web.Request) -> web.Response:
        waiting.append("answer")
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def read(request: web.Request) -> web.Response:
        waiting.append("body")
        return web.Response(body=await request.read())

    async def large(_request: web.Request) -> web.Response:
        waiting.append("reader")
        return web.Response(body=b"x" * (16 << 20))

    served = web.Application()
    served.add_routes([web.get("/wait", wait), web.post("/read", read), web.get("/large", large)])
    app = App(0, asyncio.Event())
    async with asyncio.timeout(WAIT):
        async with listening(
            served, HOST, 0, server="api", limits=Limits(), drain_seconds=drain_seconds
        ) as app.port:
            await app.connect(GET.replace(b"/", b"/wait", 1))
            await app.connect(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            await app.connect(GET.replace(b"/", b"/large", 1))
            await until(lambda: len(waiting) == 3)
            began = time.monotonic()
        # aiohttp's own way takes the drain twice.
        assert drain_seconds <= time.monotonic() - began < 2 * drain_seconds
        app.leave()


@pytest.mark.parametrize("said_before", [b"", GET[:10]], ids=["nothing", "half a head"])
async def test_a_stop_hears_out_who_has_just_come(said_before: bytes) -> None:
    """Its client could not know, and no other process can answer what this one has accepted."""
    async with asyncio.timeout(WAIT):
        served = web.Application()
        app = App(0, asyncio.Event())
        gauge = HTTP_CONNECTIONS.labels("api")._value
        async with AsyncExitStack() as stack:
            app.port = await stack.enter_async_context(
                listening(served, HOST, 0, server="api", limits=Limits(), drain_seconds=1)
            )
            client = await app.connect(said_before)
            await until(lambda: gauge.get() == 1)
            stopping = asyncio.create_task(stack.pop_all().aclose())
            # Not before the stop has closed the listener.
            await asyncio.sleep(0.05)
            client[1].write(GET.removeprefix(said_before))
            assert (await client[0].readline()).startswith(b"HTTP/1.1 404 ")
            await stopping
        app.leave()


# One request after the other


async def test_requests_sent_ahead_are_answered_in_order_in_the_task_of_their_connection() -> None:
    async with serving() as app:
        client = await app.connect(GET.replace(b"/ ", b"/wait ") + GET)
        await until(lambda: app.waiting == 1)
        tasks = len(asyncio.all_tasks())
        app.gate.set()
        assert (await answer(client)).endswith(b"waited")
        assert (await answer(client)).endswith(b"hello")
        # A request that is answered and one that is not take as many.
        assert len(asyncio.all_tasks()) == tasks


# Bodies


async def test_a_body_larger_than_what_is_buffered_arrives_whole() -> None:
    size = 3 << 20
    async with serving() as app:
        client = await app.connect()
        head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        assert (await app.ask(client, head + b"x" * size)).endswith(b"\r\n\r\n%d" % size)
        assert (await app.ask(client)).endswith(b"hello")
