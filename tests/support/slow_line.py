"""A line between a client and a broker that carries only so many bits a second, upwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 4096


class Line:
    """All connections share the line, in turns of 4 KiB. `host` is where it begins."""

    def __init__(self, bytes_per_second: float) -> None:
        self.host = ""
        self.bytes_per_second = bytes_per_second
        self._turn = asyncio.Lock()
        self._free_at = 0.0

    async def up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            async with self._turn:
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + len(chunk) / self.bytes_per_second
                await asyncio.sleep(self._free_at - now)  # the line's own time
            writer.write(chunk)
            await writer.drain()

    async def down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def slow_line(host: str, bits_per_second: float) -> AsyncIterator[Line]:
    """A line to `host` ("127.0.0.1:port")."""
    name, _, port = host.rpartition(":")
    line = Line(bits_per_second / 8)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(name, int(port))
        try:
            with suppress(ConnectionError):
                await asyncio.wait(
                    [
                        asyncio.create_task(line.up(reader, back)),
                        asyncio.create_task(line.down(there, writer)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            back.close()
            writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        line.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield line
