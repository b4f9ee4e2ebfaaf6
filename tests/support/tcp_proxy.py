"""A proxy before any server, which counts its connections, cuts them, or lets them fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class TcpProxy:
    """Passes bytes on. `forget` is what a firewall does: the open connections stay, and nothing passes any more."""

    def __init__(self) -> None:
        self.host = ""
        self.connections = 0
        self.open: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()

    def cut(self) -> None:
        for link in self.open:
            link.cancel()

    def forget(self) -> None:
        """Drop what passes on the connections that are open now."""
        self._passing.clear()
        self._passing = asyncio.Event()
        self._passing.set()

    async def link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self.connections += 1
        passing = self._passing
        back, forward = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    if passing.is_set():
                        target.write(data)
                        await target.drain()
            target.close()

        try:
            await asyncio.gather(copy(reader, forward), copy(back, writer))
        finally:
            for each in (forward, writer):
                each.transport.abort()


@asynccontextmanager
async def tcp_proxy(port: int) -> AsyncIterator[TcpProxy]:
    proxy = TcpProxy()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        proxy.open.add(task)
        try:
            await proxy.link(reader, writer, port)
        except (asyncio.CancelledError, OSError):
            pass  # cut, or nobody listens
        finally:
            proxy.open.discard(task)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        proxy.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            proxy.cut()
            if proxy.open:
                await asyncio.wait(set(proxy.open), timeout=5)
