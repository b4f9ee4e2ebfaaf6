"""What a transaction pooler does, and no more: every client's transactions go through one server session."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ENCRYPTION_REQUESTS = (80877103, 80877104)
QUERY_ENDS = b"QS"
PARAMETERS = {"server_version": "15.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"}


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


GREETING = b"".join(
    [
        message(b"R", struct.pack("!I", 0)),
        *(message(b"S", f"{name}\0{value}\0".encode()) for name, value in PARAMETERS.items()),
        message(b"K", struct.pack("!II", 4_000_000_000, 1)),
        message(b"Z", b"I"),
    ]
)


async def read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    [length] = struct.unpack("!I", await reader.readexactly(4))
    return kind, await reader.readexactly(length - 4)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        [length, request] = struct.unpack("!II", await reader.readexactly(8))
        await reader.readexactly(length - 8)
        if request not in ENCRYPTION_REQUESTS:
            break
        writer.write(b"N")
    writer.write(GREETING)


async def serve(client: Streams, server: Streams, turn: asyncio.Lock) -> None:
    """Pass on whole queries, one client's at a time until the server is idle again."""
    reader, writer = client
    await greet(reader, writer)
    held = False
    try:
        while True:
            pending = b""
            while True:
                kind, body = await read(reader)
                if kind == b"X":
                    return
                pending += message(kind, body)
                if kind in QUERY_ENDS:
                    break
            if not held:
                await turn.acquire()
                held = True
            server[1].write(pending)
            while kind != b"Z":
                kind, body = await read(server[0])
                writer.write(message(kind, body))
            if body == b"I":
                turn.release()
                held = False
    except asyncio.IncompleteReadError:
        pass  # the client went without a word
    finally:
        if held:
            turn.release()
        writer.close()


@asynccontextmanager
async def transaction_pooler(url: str) -> AsyncIterator[str]:
    """The URL of a pooler in front of `url` (a connection without encryption)."""
    turn = asyncio.Lock()
    with psycopg.connect(url, autocommit=True) as conn:
        backend = socket.socket(fileno=os.dup(conn.fileno()))
        server = await asyncio.open_connection(sock=backend)

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve((reader, writer), server, turn)

        listener = await asyncio.start_server(served, "127.0.0.1", 0)
        try:
            port = listener.sockets[0].getsockname()[1]
            user = quote(str(conninfo_to_dict(url)["user"]), safe="")
            yield f"postgresql://{user}@127.0.0.1:{port}/any"
        finally:
            listener.close()
            server[1].close()
