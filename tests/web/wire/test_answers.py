"""An answer that is written at once says what aiohttp's own way of writing says."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from engine.process.http.admission import Limits
from engine.process.http.listener import listening
from ops.harness.ports import HOST
from ops.waiting import until
from tests.support.web_harness import WebHarness, bearer
from web.wire.answer import Answer

VARYING = {"date", "x-request-id", "connection"}


async def answered(port: int, method: str, version: str, *more: str) -> tuple[str, dict[str, str], bytes]:
    """The status, the fields and the body of an answer after which the connection may stay open."""
    lines = [f"{method} /pipeline/presets HTTP/{version}", "Host: x", *more]
    lines += [f"{name}: {value}" for name, value in bearer().items()]
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status, *named = head.splitlines()[:-1]
            fields = dict(line.lower().split(": ", 1) for line in named)
            assert len(fields) == len(named)
            body = await reader.readexactly(int(fields["content-length"])) if method != "HEAD" else b""
            if fields.get("connection") == "close":
                assert await reader.read() == b""
            return status.split(" ", 1)[1], fields, body
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("method", "version", "more", "connection"),
    [
        ("GET", "1.1", (), None),
        ("GET", "1.1", ("Connection: close",), "close"),
        ("GET", "1.0", ("Connection: keep-alive",), "keep-alive"),
        ("GET", "1.0", (), None),
        ("HEAD", "1.1", (), None),
    ],
)
async def test_every_way_of_asking_gets_the_same_answer(
    shared_harness: WebHarness, method: str, version: str, more: tuple[str, ...], connection: str | None
) -> None:
    usual = await answered(shared_harness.port, "GET", "1.1")
    asked = await answered(shared_harness.port, method, version, *more)
    assert asked[0] == usual[0] == "200 OK"
    assert asked[1].get("connection") == connection
    assert set(usual[1]) == {"content-type", "content-length", "date", "x-request-id"}
    for fields in (usual[1], asked[1]):
        for name in VARYING:
            fields.pop(name, None)
    assert asked[1] == usual[1]
    assert asked[2] == (b"" if method == "HEAD" else usual[2])


async def test_who_reads_no_answers_gets_no_more_than_the_sockets_hold() -> None:
    """Else they would fill the server's memory."""
    answers = 0

    async def handler(_request: web.Request) -> web.Response:
        nonlocal answers
        answers += 1
        return Answer(body=bytes(1 << 20))

    app = web.Application()
    app.router.add_get("/", handler)
    async with listening(app, HOST, 0, server="api", limits=Limits(), drain_seconds=0.1) as port:
        with socket.create_connection((HOST, port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            with pytest.raises(TimeoutError):
                # They take a tenth of a second.
                await until(lambda: answers == 100, 1.0)
    assert 0 < answers < 50
