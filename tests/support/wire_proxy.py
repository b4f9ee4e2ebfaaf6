"""A proxy before PostgreSQL that cuts a connection at a chosen moment of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

EXECUTE, QUERY, READY = b"E", b"Q", b"Z"

Moment = Literal["before it is sent", "after its commit"]


class WireProxy:
    """Passes everything on. Armed for a connection, by its name, it cuts that one at its next statement, or at the
    next simple one of some text. While `down` it cuts every connection, and refuses new ones.

    In autocommit the server has committed when it says that it is ready: cut then, the client cannot know.
    """

    def __init__(self) -> None:
        self.url = ""
        self.cuts = 0
        self.links: set[asyncio.Task[None]] = set()
        self._down = False
        self._name = b""
        self._moment: Moment | None = None
        self._text: bytes | None = None

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        self._down = down
        if down:
            for link in self.links:
                link.cancel()

    def arm(self, name: str, moment: Moment, text: str | None = None) -> None:
        self._name = f"outrider {name}".encode()
        self._moment = moment
        self._text = text.encode() if text else None

    def meant(self, kind: bytes, message: bytes) -> bool:
        """Whether this is a statement to be cut at."""
        return kind == EXECUTE if self._text is None else kind == QUERY and self._text in message

    async def passed(
        self, up: tuple[asyncio.StreamReader, asyncio.StreamWriter], down: asyncio.StreamWriter, url: str
    ) -> None:
        reader, back = up
        forward_from, forward = await _opened(url)
        try:
            hello = await _startup(reader)
            forward.write(hello)
            link = _Link(self, hello, forward, back)
            async with asyncio.TaskGroup() as group:
                group.create_task(link.requests(reader))
                group.create_task(link.answers(forward_from))
        except* (asyncio.IncompleteReadError, ConnectionError, _Cut):
            pass  # either side has gone: so does the other
        finally:
            for writer in (forward, down):
                writer.close()

    def cut(self, hello: bytes, moment: Moment) -> bool:
        if self._moment != moment or self._name not in hello:
            return False
        self._moment = None
        self.cuts += 1
        return True


class _Cut(Exception):
    pass


class _Link:
    def __init__(
        self, proxy: WireProxy, hello: bytes, forward: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._hello = hello
        self._forward = forward
        self._back = back
        self._executed = False

    async def requests(self, reader: asyncio.StreamReader) -> None:
        while True:
            kind, message = await _message(reader)
            if self._proxy.meant(kind, message):
                if self._proxy.cut(self._hello, "before it is sent"):
                    raise _Cut
                self._executed = True
            self._forward.write(message)
            await self._forward.drain()

    async def answers(self, reader: asyncio.StreamReader) -> None:
        while True:
            kind, message = await _message(reader)
            if kind == READY and self._executed:
                self._executed = False
                if self._proxy.cut(self._hello, "after its commit"):
                    raise _Cut
            self._back.write(message)
            await self._back.drain()


@asynccontextmanager
async def wire_proxy(url: str) -> AsyncIterator[WireProxy]:
    made = WireProxy()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        made.links.add(task)
        with suppress(asyncio.CancelledError):
            if not made.down:
                await made.passed((reader, writer), writer, url)
        writer.close()
        made.links.discard(task)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        made.url = make_conninfo(url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        try:
            yield made
        finally:
            made.down = True
            if made.links:
                await asyncio.wait(made.links, timeout=5)


async def _opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = conninfo_to_dict(url)
    host, port = str(place.get("host") or "/var/run/postgresql"), int(place.get("port") or 5432)
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    """The first message alone has no kind."""
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big") - 4)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
